"""Pretrain: one step is a masked prediction; one evaluation a held-out loss, a kNN accuracy and pictures.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mim.cost.model_summary import ModelSummary
from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.evaluation.avg_dist import masker_avg_dist
from mim.evaluation.knn import FeatureTable, features_of, knn_accuracy
from mim.evaluation.reading import EvaluationBatch, Reader, choose_samples
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS
from mim.model import MaskedImageModel
from mim.ops.seeding import generator_for
from mim.pictures.reconstructions import draw_sheet, predict_pixels
from mim.structures import PatchMask
from mim.tasks.held_out import HeldOutPass
from mim.tasks.settings import EvaluateSettings

KEPT_BYTES = 2**31  # of held-out images that the first evaluation keeps on the host rather than read twice


class Pretrain:
    """The pretraining task; mim.engine.protocol.Task explains the methods.

    Args:
        model: what is trained.
        preprocess: from stored images to what the model sees.
        train_data: training images under their augmentation.
        bank: training images under the evaluation transform, for kNN.
        held_out: held-out images under the evaluation transform; may be empty.
        settings: EVALUATE.
        seed: of the masks and samples of evaluations.
        model_summary: parameters, shapes and operations of the model.
        reader: reads the images of evaluations.
    """

    name = "pretrain"

    def __init__(
        self,
        model: MaskedImageModel,
        preprocess: Preprocess,
        train_data: ImageDataset,
        bank: ImageDataset,
        held_out: ImageDataset,
        settings: EvaluateSettings,
        seed: int,
        model_summary: ModelSummary,
        reader: Reader,
    ):
        self.model, self.preprocess, self.train_data = model, preprocess, train_data
        self.bank, self.held_out, self.settings, self.seed = bank, held_out, settings, seed
        self.model_summary, self.reader = model_summary, reader
        self.fixed: list[nn.Module] = [preprocess]
        self._baseline: float | None = None

    def blocks(self) -> list[nn.Module]:
        return self.model.blocks()

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {f"encoder.{name}": lr_scale for name, lr_scale in self.model.encoder.lr_scales(layer_decay).items()}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The masked loss. Masks are drawn for the whole global batch, of which these are some rows."""
        img_BCHW = self.preprocess(batch.images_BCHW, batch.crops_B5)
        device = img_BCHW.device
        generator = generator_for(device, context.seed, "mask", context.step)
        mask = self.model.masker.sample(context.batch, generator, device)
        return model(img_BCHW, mask.rows(context.start, context.start + len(img_BCHW))).loss

    def evaluate(self, model: MaskedImageModel, world: World) -> Report:
        """val/loss and val/baseline under fixed masks, knn/top1 where images have labels, and a picture.

        The baseline predicts each channel's mean over the held-out targets everywhere. Ranks share the samples, and
        each is counted once. The held-out images are read once; where they are many, the first evaluation, which
        computes the baseline, reads them twice.
        """
        if not len(self.held_out):
            return Report({}, {})
        first = self._baseline is None
        held_out = HeldOutPass(
            *(model, self.preprocess, self._fixed_masks(world.device), world),
            pictured=min(self.settings.reconstructions, self._samples),
            with_features=self.settings.knn > 0 and self._labelled,
            with_targets=first,
            keep=first and self._bytes <= KEPT_BYTES * world.size,
        )
        for part in self._read_held_out(world):
            held_out.add(part)
        if first:
            parts = self._read_held_out(world) if held_out.kept is None else held_out.kept
            self._baseline = held_out.baseline(parts)
        assert self._baseline is not None
        metrics = {VAL_LOSS: held_out.loss(), VAL_BASELINE: self._baseline}
        if held_out.features is not None:
            metrics[KNN_TOP1] = self._knn(model, world, held_out.features)
        return Report(metrics, self._picture(model, held_out, world))

    def describe(self) -> dict[str, str]:
        model = self.model
        masker, spec, image = model.masker, model.encoder.spec, model.encoder.image
        distance = masker_avg_dist(masker, image).mean
        lines = {
            "masker": f"{masker.name}: {masker.visible} of {masker.cells} cells of {masker.cell} px stay visible "
            f"({masker.ratio:.1%} hidden), AvgDist {distance:.1f} px",
            "encoder": f"{model.encoder.name}, hidden cells: {model.encoder.hidden}; {spec.grid[0]} x {spec.grid[1]} "
            f"tokens of width {spec.width}; {_words(_parameters(model.encoder))} parameters",
            "head": f"{model.head.name}; {_words(_parameters(model.head))} parameters",
            "target, loss": f"{model.target.name}, {model.loss.name} over {model.loss.over} cells",
            "images": f"{len(self.train_data):,} to train, {len(self.held_out):,} held out; "
            f"{image.channels} x {image.height} x {image.width}",
            **self.model_summary.describe(),
        }
        if not len(self.held_out):
            lines["evaluation"] = "none: no images are held out"
        elif self.settings.knn and not self._labelled:
            lines["evaluation"] = "held-out loss; no kNN, because images have no labels"
        return lines

    def metrics(self) -> dict[str, float]:
        return {"parameters": _parameters(self.model), **self.model_summary.metrics()}

    # ---------------------------------------------------------------- evaluation

    @property
    def _labelled(self) -> bool:
        return self.bank.source.labels is not None and self.held_out.source.labels is not None

    @property
    def _samples(self) -> int:
        return min(self.settings.samples, len(self.held_out))

    @property
    def _bytes(self) -> int:
        """Of the held-out images, at most."""
        image = self.model.encoder.image
        return 4 * self._samples * image.channels * image.height * image.width

    def _read_held_out(self, world: World) -> Iterator[EvaluationBatch]:
        samples = choose_samples(len(self.held_out), self.settings.samples, self.seed)
        return self.reader.read(self.held_out, samples, world.rank, world.size)

    def _fixed_masks(self, device: torch.device) -> PatchMask:
        return self.model.masker.sample(self._samples, generator_for(device, self.seed, "held-out masks"), device)

    def _knn(self, model: MaskedImageModel, world: World, queries: FeatureTable) -> float:
        samples = choose_samples(len(self.bank), self.settings.knn_bank, self.seed)
        parts = self.reader.read(self.bank, samples, world.rank, world.size)
        tables = features_of(model.encoder, "mean", self.preprocess, parts, world.device), queries.tensors()
        (bank_MD, labels_M), (queries_ND, labels_N) = (map(world.gather, table[:2]) for table in tables)
        k, temperature = self.settings.knn, self.settings.knn_temperature
        return knn_accuracy(bank_MD, labels_M, queries_ND, labels_N, k, temperature)

    def _picture(self, model: MaskedImageModel, held_out: HeldOutPass, world: World) -> dict[str, Tensor]:
        """The picture of reconstructions, on the main rank; none where the target is no picture."""
        if not held_out.pictured:
            return {}
        images_BCHW = held_out.pictured_images()
        if not world.main:
            return {}
        masks = held_out.masks_R.rows(0, len(images_BCHW))
        reconstruction = predict_pixels(model, self.preprocess, images_BCHW, masks)
        if reconstruction is None:
            return {}
        title = f"{model.masker.name} masker, {model.encoder.name} ({model.encoder.hidden}), {model.head.name} head"
        return {"reconstructions": draw_sheet(reconstruction, title)}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _words(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
