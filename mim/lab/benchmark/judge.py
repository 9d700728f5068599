"""Judge: what the features of a side are worth, by the same images and the same code for all sides.

Shapes: B batch, C channels, H W pixels, M training images, N held-out ones, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim.data.loading.dataset import ImageDataset
from mim.engine.precision import autocast
from mim.evaluation.knn import knn_accuracy
from mim.evaluation.logistic import logistic_accuracy
from mim.evaluation.reading import EvaluationBatch, choose_samples
from mim.lab.benchmark.sides import Encode, Side, TimedRun


class Judge:
    """Nearest neighbours and a linear probe on the mean of the patch tokens of whole images.

    Images, their choice and their crops are those of a run's evaluations: EVALUATE.knn_bank training images,
    EVALUATE.samples held-out ones. They are read once and kept on the host.
    """

    def __init__(self, run: TimedRun):
        task = run.task
        self.run, self.settings = run, task.settings
        self._bank = self._read(task.bank, self.settings.knn_bank)
        self._held_out = self._read(task.held_out, self.settings.samples)

    def accuracies(self, side: Side) -> tuple[float, float | None]:
        """Shares of held-out images that are classified correctly.

        By EVALUATE.knn neighbours (knn_accuracy), and by a logistic regression on all training images that were read
        (logistic_accuracy), or None where that has not converged.
        """
        bank_MD, bank_labels_M, queries_ND, labels_N = self.features(side)
        k, temperature = self.settings.knn, self.settings.knn_temperature
        neighbours = knn_accuracy(bank_MD, bank_labels_M, queries_ND, labels_N, k, temperature)
        try:
            return neighbours, logistic_accuracy(bank_MD.cpu(), bank_labels_M.cpu(), queries_ND.cpu(), labels_N.cpu())
        except ValueError:
            return neighbours, None

    def features(self, side: Side) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (M, D) and labels (M,) of training images, then of held-out ones. Raises ValueError for NaN."""
        with side.encoder() as encode:
            tensors = *self._encode(encode, self._bank), *self._encode(encode, self._held_out)
        if not all(tensor.isfinite().all() for tensor in (tensors[0], tensors[2])):
            raise ValueError(
                f"the features of {side.name} are not finite after {side.seconds:.0f} s: lower OPTIMIZER.base_lr"
            )
        return tensors

    def _read(self, images: ImageDataset, limit: int) -> list[EvaluationBatch]:
        order = choose_samples(len(images), limit, self.run.cfg.SEED)
        return [part.copy() for part in self.run.task.reader.read(images, order)]

    def _encode(self, encode: Encode, parts: Sequence[EvaluationBatch]) -> tuple[Tensor, Tensor]:
        """Features in float32, and labels."""
        device, precision = self.run.world.device, self.run.cfg.TRAIN.precision
        features, labels = [], []
        for part in parts:
            img_BCHW = self.run.task.preprocess(part.batch.images_BCHW.to(device))
            with autocast(precision, device):
                features.append(encode(img_BCHW).float())
            labels.append(part.batch.labels.to(device))
        return torch.cat(features), torch.cat(labels)
