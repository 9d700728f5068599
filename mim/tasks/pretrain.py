"""Pretrain: one step is a masked prediction; one evaluation a held-out loss, a kNN accuracy and pictures.

Shapes: B batch, C channels, H W pixels, R held-out samples.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mim import metric_keys
from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import missing_pixels
from mim.data.sources.classes import class_labels
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext, StepLoss
from mim.evaluation.avg_dist import masker_avg_dist
from mim.evaluation.knn import FeatureTable, features_of, knn_accuracy
from mim.evaluation.reading import EvaluationBatch, choose_samples, left_out_metrics
from mim.io.weights import TEACHERS
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS
from mim.model import MaskedImageModel
from mim.ops.seeding import generator_for
from mim.pictures.predictions import draw_predictions
from mim.structures import Output, PatchMask
from mim.tasks.base import BuiltTask
from mim.tasks.held_out_targets import Read, collapse, mean_over, measure_targets
from mim.tasks.missing_pixels import describe_missing
from mim.tasks.settings import EvaluateSettings

KEPT_BYTES = 2**31  # of held-out images of a rank, which the first evaluation may keep on the host


@dataclass(eq=False, kw_only=True)
class Pretrain(BuiltTask[MaskedImageModel]):
    """The pretraining task; mim.engine.protocol.Task explains the methods."""

    name = "pretrain"

    bank: ImageDataset  # training images under the evaluation transform, for kNN
    settings: EvaluateSettings
    seed: int  # of the masks and samples of evaluations
    masks: int = 1  # of each image in a step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fixed += [network.network for network in self.model.target.frozen_networks()]
        self._measures: dict[str, float] = {}  # of the held-out targets
        self._drawn: tuple[Any, PatchMask] | None = None  # the step and the masks of the newest one

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StepLoss:
        """The masked loss. Masks are drawn for the whole global batch, of which these are some rows."""
        images_BCHW = self.preprocess.crop(batch.images_BCHW, batch.crops_B5)
        img_BCHW = self.preprocess.normalise(images_BCHW)
        start, stop = context.start * self.masks, (context.start + len(img_BCHW)) * self.masks
        masks = self._masks_of(context, img_BCHW.device).rows(start, stop).with_missing(missing_pixels(images_BCHW))
        output: Output = model(img_BCHW, masks)
        return StepLoss(output.loss, {metric_keys.train(name): value for name, value in output.metrics.items()})

    def _masks_of(self, context: StepContext, device: torch.device) -> PatchMask:
        """The masks of the global batch, which all micro-batches of a step share."""
        step = (context.seed, context.step, context.batch, device)
        if self._drawn is None or self._drawn[0] != step:
            generator = generator_for(device, context.seed, "mask", context.step)
            self._drawn = step, self.model.masker.sample(context.batch * self.masks, generator, device)
        return self._drawn[1]

    def shards(self) -> list[nn.Module]:
        return [*self.blocks(), *self.model.target.blocks()]

    def after_step(self, progress: float) -> None:
        self.model.target.after_step(self.model.encoder, progress)

    def evaluate(self, model: MaskedImageModel, world: World) -> Report:
        """val/loss and val/baseline under fixed masks, knn/top1 where images have labels, and a picture.

        The baseline predicts each channel's mean over the held-out targets everywhere. Ranks share the samples, and
        each is counted once, from one reading; it is read more often where the images are many, in the first evaluation
        or, where the target changes, in each. Broken images are left out and named.
        """
        if not len(self.held_out):
            return Report({}, {})
        samples = choose_samples(len(self.held_out), self.settings.samples, self.seed)
        read: Read = partial(self.reader.read, self.held_out, samples, world.rank, world.size)
        generator = generator_for(world.device, self.seed, "held-out masks")
        masks_R = self.model.masker.sample(len(samples), generator, world.device)
        if not self._measures or model.target.moving:
            image = model.encoder.image
            if 4 * len(samples) * image.channels * image.height * image.width <= KEPT_BYTES * world.size:
                kept = [part.copy() for part in read()]
                read = kept.copy
            self._measures = measure_targets(model, self.preprocess, masks_R, read, world)
        queries = FeatureTable(model.encoder, "mean", world.device) if self.settings.knn and self._labelled else None
        pictured = range(min(self.settings.reconstructions, len(samples)))
        pictured_images: list[Tensor] = []
        pictured_rows: list[int] = []

        def values_of(part: EvaluationBatch) -> Tensor:
            images_BCHW = part.batch.images_BCHW.to(world.device)
            img_BCHW = self.preprocess(images_BCHW)
            if queries is not None:
                queries.add(part, img_BCHW)
            if part.rows[0] in pictured:  # rows are in order
                rows = [row for row in part.rows if row in pictured]
                pictured_images.append(images_BCHW[: len(rows)])
                pictured_rows.extend(rows)
            masks = masks_R.samples(part.rows).with_missing(missing_pixels(images_BCHW))
            output: Output = model(img_BCHW, masks)
            return StepLoss(output.loss, output.metrics).values().double() * len(part.rows)

        values, images = mean_over(read(), values_of, 1 + len(model.metric_names), world)
        broken = self.reader.settle(images, world)
        names = (VAL_LOSS, *map(metric_keys.val, model.metric_names))
        metrics = {**dict(zip(names, values.tolist(), strict=True)), **self._measures}
        if queries is not None:
            metrics[KNN_TOP1], broken = self._knn(model, world, queries)
        picture = self._picture(model, pictured_images, pictured_rows, masks_R, world) if pictured else {}
        return Report(metrics, picture, left_out_metrics(broken))

    def describe(self) -> dict[str, str]:
        model = self.model
        masker, spec, image = model.masker, model.encoder.spec, model.encoder.image
        distance = masker_avg_dist(masker, image).mean
        lines = {
            "masker": f"{masker.name}: {masker.visible} of {masker.cells} cells of {masker.cell} px stay visible "
            f"({masker.ratio:.1%} hidden), AvgDist {distance:.1f} px{self._masks_of_an_image()}",
            "encoder": f"{model.encoder.title}, hidden cells: {model.encoder.hidden}; {spec.grid[0]} x {spec.grid[1]} "
            f"tokens of width {spec.width}; {_words(_parameters(model.encoder))} trained parameters",
            "head": f"{model.head.name}; {_words(_parameters(model.head))} trained parameters",
            "target, loss": f"{model.target.title}, {model.loss.name} over {model.loss.over} cells",
            **self.image_lines(f"{len(self.train_data):,} to train"),
            **self.model_summary.describe(),
        }
        if missing := describe_missing(self.bank, masker):
            lines["missing pixels"] = missing
        if not len(self.held_out):
            lines["evaluation"] = "none: no images are held out"
        elif self.settings.knn and not self._labelled:
            text = "held-out loss; no kNN, because images have no labels: use class folders, or a list with a label "
            lines["evaluation"] = text + "after each path, or turn it off with EVALUATE.knn 0"
        elif self.settings.knn:
            lines["evaluation"] = f"held-out loss; kNN accuracy with k = {self.settings.knn}"
        return lines

    @property
    def teachers(self) -> dict[str, str]:
        """SHA-256 of the files of the target's frozen networks, by path."""
        networks = self.model.target.frozen_networks()
        return {file: checksum for network in networks for file, checksum in network.checksums.items()}

    def metadata(self) -> dict[str, Any]:
        return {TEACHERS: self.teachers} if self.teachers else {}

    def _masks_of_an_image(self) -> str:
        return f"; {self.masks} masks of each image" if self.masks > 1 else ""

    def metrics(self) -> dict[str, float]:
        return {"parameters": _parameters(self.model), **self.model_summary.metrics()}

    def warnings(self, results: dict[str, Any]) -> list[str]:
        loss, baseline = results.get(VAL_LOSS, 0.0), results.get(VAL_BASELINE, torch.inf)
        if line := collapse(results):
            return [line]
        if loss <= baseline:
            return []
        text = f"val/loss {loss:.4f} is above val/baseline {baseline:.4f}: the model predicts worse than the mean of "
        return [text + "the targets. Try more epochs (--extend goes on with this run), or another OPTIMIZER.base_lr"]

    # ---------------------------------------------------------------- evaluation

    @property
    def _labelled(self) -> bool:
        return all(class_labels(images.source) is not None for images in (self.bank, self.held_out))

    def _knn(self, model: MaskedImageModel, world: World, queries: FeatureTable) -> tuple[float, dict[str, str]]:
        """The accuracy, and the reason for each file that evaluations left out."""
        samples = choose_samples(len(self.bank), self.settings.knn_bank, self.seed)
        parts = self.reader.read(self.bank, samples, world.rank, world.size)
        tables = features_of(model.encoder, "mean", self.preprocess, parts, world.device), queries.tensors()
        (bank_MD, labels_M), (queries_ND, labels_N) = (map(world.gather, table[:2]) for table in tables)
        k, temperature = self.settings.knn, self.settings.knn_temperature
        broken = self.reader.settle(len(bank_MD), world)
        return knn_accuracy(bank_MD, labels_M, queries_ND, labels_N, k, temperature), broken

    def _picture(
        self, model: MaskedImageModel, images: list[Tensor], rows: list[int], masks_R: PatchMask, world: World
    ) -> dict[str, Tensor]:
        """The picture of reconstructions, on the main rank; none where no images are held out.

        rows: position of each of this rank's images among the samples.
        """
        image = model.encoder.image
        # sent as floats, because not every backend can send 16-bit integers
        empty = torch.empty(0, image.channels, image.height, image.width, device=world.device)
        by_rank = world.gather(torch.cat([empty, *(part.float() for part in images)]))
        rows_N = world.gather(torch.tensor(rows, dtype=torch.long, device=world.device))
        dtypes = world.gather_objects(images[0].dtype if images else None)
        dtype = next((each for each in dtypes if each is not None), None)
        if not world.main or dtype is None:
            return {}
        rows_N, order_N = rows_N.sort()
        images_BCHW = by_rank[order_N].to(dtype)
        masks = masks_R.samples(rows_N).with_missing(missing_pixels(images_BCHW))
        title = f"{model.masker.name} masker, {model.encoder.title} ({model.encoder.hidden}), {model.head.name} head"
        return draw_predictions(model, self.preprocess, images_BCHW, masks, title)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _words(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
