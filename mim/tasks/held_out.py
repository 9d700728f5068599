"""HeldOutPass: what a pretraining evaluation takes from one reading of the held-out images.

Shapes: B batch, C channels, H W pixels, R rows of held-out samples, D feature width.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.evaluation.knn import FeatureTable
from mim.evaluation.reading import EvaluationBatch
from mim.model import MaskedImageModel
from mim.structures import PatchMask, Prediction


class Mean:
    """A mean over samples of all ranks, for each of some channels, in float64."""

    def __init__(self, channels: int, device: torch.device):
        self._total = torch.zeros(channels + 1, dtype=torch.float64, device=device)

    def add(self, sum_C: Tensor, samples: int) -> None:
        """Takes the sum over some samples."""
        self._total[:-1] += sum_C
        self._total[-1] += samples

    def over_ranks(self, world: World) -> Tensor:
        """The mean of each channel, (C,). A host sync on several ranks."""
        total = world.sum(self._total)
        return total[:-1] / total[-1]


class HeldOutPass:
    """Loss, mean target, features and pictured images of held-out batches, added up as they are read.

    Args:
        model: in eval mode.
        preprocess: from stored images to what the model sees.
        masks_R: the fixed mask of each sample.
        world: shares the samples.
        pictured: the number of images of the picture.
        with_features: collect features for kNN.
        with_targets: add up the targets, for the baseline.
        keep: keep the images on the host, so that the baseline needs no second reading.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        preprocess: Preprocess,
        masks_R: PatchMask,
        world: World,
        *,
        pictured: int,
        with_features: bool,
        with_targets: bool,
        keep: bool,
    ):
        self.model, self.preprocess, self.masks_R, self.world, self.pictured = (
            *(model, preprocess, masks_R, world),
            pictured,
        )
        self.features = FeatureTable(model.encoder, "mean", world.device) if with_features else None
        self.kept: list[EvaluationBatch] | None = [] if keep else None
        self._losses = Mean(1, world.device)
        self._targets = Mean(model.target.spec.channels, world.device) if with_targets else None
        self._images: list[Tensor] = []
        self._rows: list[int] = []

    def add(self, part: EvaluationBatch) -> None:
        """Takes a batch."""
        images_BCHW = part.batch.images_BCHW.to(self.world.device)
        img_BCHW = self.preprocess(images_BCHW)
        loss = self.model(img_BCHW, self._masks(part)).loss
        self._losses.add(loss.double() * len(part.rows), len(part.rows))
        if self._targets is not None:
            target_BCHW = self.model.target(img_BCHW).double()
            self._targets.add(target_BCHW.mean(dim=(2, 3)).sum(dim=0), len(part.rows))
        if self.features is not None:
            self.features.add(part, img_BCHW)
        if part.rows and part.rows[0] < self.pictured:
            self._rows += [row for row in part.rows if row < self.pictured]
            self._images.append(images_BCHW[: sum(row < self.pictured for row in part.rows)])
        if self.kept is not None:  # a copy, because a tensor of a dataloader worker holds an open file
            self.kept.append(replace(part, batch=replace(part.batch, images_BCHW=part.batch.images_BCHW.clone())))

    def loss(self) -> float:
        """The mean loss of all ranks. A host sync."""
        return float(self._losses.over_ranks(self.world))

    def baseline(self, parts: Iterable[EvaluationBatch]) -> float:
        """The loss of predicting each channel's mean target everywhere, over these batches. A host sync."""
        assert self._targets is not None
        mean_1C11 = self._targets.over_ranks(self.world).float()[None, :, None, None]
        losses = Mean(1, self.world.device)
        for part in parts:
            target_BCHW = self.model.target(self.preprocess(part.batch.images_BCHW.to(self.world.device)))
            prediction = Prediction(mean_1C11.expand_as(target_BCHW))
            loss = self.model.loss(prediction, target_BCHW, self._masks(part))
            losses.add(loss.double() * len(part.rows), len(part.rows))
        return float(losses.over_ranks(self.world))

    def pictured_images(self) -> Tensor:
        """The images of the picture in their order, from all ranks, on the main rank in their stored type."""
        image = self.model.encoder.image
        empty = torch.empty(0, image.channels, image.height, image.width, device=self.world.device)
        # as floats, because not every backend can send 16-bit integers
        images_BCHW = self.world.gather(torch.cat([empty, *(images.float() for images in self._images)]))
        rows_B = self.world.gather(torch.tensor(self._rows, dtype=torch.long, device=self.world.device))
        return images_BCHW[rows_B.argsort()].to(self._images[0].dtype if self._images else torch.float32)

    def _masks(self, part: EvaluationBatch) -> PatchMask:
        return PatchMask(self.masks_R.hidden_BHW[part.rows], self.masks_R.visible)
