"""Pretrain: one step is a masked prediction; one evaluation a held-out loss, a kNN accuracy and pictures.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mim.cost.model_summary import ModelSummary
from mim.data.batch import Batch
from mim.data.loading.loader import ImageDataset
from mim.data.transforms import Normalize
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.evaluation.avg_dist import masker_avg_dist
from mim.evaluation.knn import features_of, knn_accuracy
from mim.evaluation.reading import Reader, choice
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS
from mim.model import MaskedImageModel
from mim.ops.seeding import generator_for
from mim.pictures.reconstructions import draw_sheet, predict_pixels
from mim.structures import PatchMask, Prediction
from mim.tasks.settings import EvaluateSettings


class Pretrain:
    """The pretraining task; see mim.engine.protocol.Task for what each method is for.

    Args:
        train_data: training images under their augmentation.
        bank, held_out: training and held-out images under the evaluation transform; held_out may be empty.
        model_summary: shapes at the boundaries and operations.
        reader: of evaluations.
    """

    name = "pretrain"

    def __init__(
        self,
        model: MaskedImageModel,
        normalize: Normalize,
        train_data: ImageDataset,
        bank: ImageDataset,
        held_out: ImageDataset,
        settings: EvaluateSettings,
        seed: int,
        model_summary: ModelSummary,
        reader: Reader,
    ):
        self.model, self.normalize, self.train_data = model, normalize, train_data
        self.bank, self.held_out, self.settings, self.seed = bank, held_out, settings, seed
        self.model_summary, self.reader = model_summary, reader
        self.fixed: list[nn.Module] = [normalize]
        self._baseline: float | None = None

    def blocks(self) -> list[nn.Module]:
        return self.model.blocks()

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {f"encoder.{name}": lr_scale for name, lr_scale in self.model.encoder.lr_scales(layer_decay).items()}

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The masked loss. Masks are drawn for the whole global batch, of which these are some rows."""
        images_BCHW = self.train_data.model_images(batch)
        device = images_BCHW.device
        generator = generator_for(device, context.seed, "mask", context.step)
        mask = self.model.masker.sample(context.batch, generator, device)
        rows = mask.rows(context.start, context.start + len(images_BCHW))
        return model(self.normalize(images_BCHW), rows).loss

    def evaluate(self, model: MaskedImageModel, world: World) -> Report:
        """val/loss and val/baseline under fixed masks, knn/top1 where images are labelled, and a picture.

        The baseline predicts each channel's mean over the held-out targets everywhere. Samples are shared out over
        ranks, each counted once.
        """
        figures: dict[str, float] = {}
        pictures: dict[str, Tensor] = {}
        if len(self.held_out):
            if self._baseline is None:
                self._baseline = self._constant_loss(model, world)
            figures[VAL_LOSS] = self._mean_loss(world, lambda img, mask: model(img, mask).loss)
            figures[VAL_BASELINE] = self._baseline
            if self.settings.knn and self._labelled:
                figures[KNN_TOP1] = self._knn(model, world)
            if self.settings.reconstructions and world.main:
                pictures.update(self._picture(model, world.device))
        return Report(figures, pictures)

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

    def figures(self) -> dict[str, float]:
        return {"parameters": _parameters(self.model), **self.model_summary.metrics()}

    # ---------------------------------------------------------------- evaluation

    @property
    def _labelled(self) -> bool:
        return self.bank.source.labels is not None and self.held_out.source.labels is not None

    @property
    def _held_out_rows(self) -> list[int]:
        return choice(len(self.held_out), self.settings.samples, self.seed)

    def _fixed_masks(self, device: torch.device) -> PatchMask:
        count = min(self.settings.samples, len(self.held_out))
        return self.model.masker.sample(count, generator_for(device, self.seed, "held-out masks"), device)

    def _mean_loss(self, world: World, loss_of: Callable[[Tensor, PatchMask], Tensor]) -> float:
        """A loss over the held-out images, each under a mask of its own that never changes."""
        masks = self._fixed_masks(world.device)
        total = torch.zeros(2, dtype=torch.float64, device=world.device)
        for shown in self.reader.read(self.held_out, self._held_out_rows, world.rank, world.size):
            mask = PatchMask(masks.hidden_BHW[shown.rows], masks.visible)
            loss = loss_of(self.normalize(shown.batch.images_BCHW.to(world.device)), mask)
            count = float(len(shown.rows))
            total += torch.stack([loss.double() * count, torch.tensor(count, device=world.device)])
        loss_sum, count = world.sum(total).tolist()  # host sync
        return loss_sum / count

    def _constant_loss(self, model: MaskedImageModel, world: World) -> float:
        """The loss of predicting each channel's mean target, whatever the image shows."""
        spec = model.target.spec
        total = torch.zeros(spec.channels + 1, dtype=torch.float64, device=world.device)
        for shown in self.reader.read(self.held_out, self._held_out_rows, world.rank, world.size):
            target_BCHW = model.target(self.normalize(shown.batch.images_BCHW.to(world.device))).double()
            total[:-1] += target_BCHW.mean(dim=(2, 3)).sum(dim=0)
            total[-1] += len(shown.rows)
        total = world.sum(total)
        mean_1C11 = (total[:-1] / total[-1]).float()[None, :, None, None]

        def constant(img_BCHW: Tensor, mask: PatchMask) -> Tensor:
            target_BCHW = model.target(img_BCHW)
            return model.loss(Prediction(mean_1C11.expand_as(target_BCHW)), target_BCHW, mask)

        return self._mean_loss(world, constant)

    def _knn(self, model: MaskedImageModel, world: World) -> float:
        found: list[tuple[Tensor, Tensor]] = []
        bank = choice(len(self.bank), self.settings.knn_bank, self.seed)
        for data, chosen in ((self.bank, bank), (self.held_out, self._held_out_rows)):
            shown = self.reader.read(data, chosen, world.rank, world.size)
            features_ND, labels_N, _ = features_of(model.encoder, "mean", self.normalize, shown, world.device)
            found.append((world.gather(features_ND), world.gather(labels_N)))
        return knn_accuracy(*found[0], *found[1], k=self.settings.knn, temperature=self.settings.knn_temperature)

    def _picture(self, model: MaskedImageModel, device: torch.device) -> dict[str, Tensor]:
        count = min(self.settings.reconstructions, self.settings.samples, len(self.held_out))
        shown = self.reader.read(self.held_out, self._held_out_rows[:count])
        images_BCHW = torch.cat([part.batch.images_BCHW for part in shown]).to(device)
        result = predict_pixels(model, self.normalize, images_BCHW, self._fixed_masks(device).rows(0, count))
        if result is None:
            return {}
        title = f"{model.masker.name} masker, {model.encoder.name} ({model.encoder.hidden}), {model.head.name} head"
        return {"reconstructions": draw_sheet(result, title)}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _words(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
