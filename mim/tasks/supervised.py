"""Supervised: the base of fine-tuning and probes, with metrics of held-out images.

Shapes: B batch, C channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.evaluation.accuracy import TOP, Counts, Tally
from mim.evaluation.reading import EvaluationBatch, choose_samples, left_out_metrics
from mim.io.weights import CLASSES, LABEL_KIND
from mim.metric_keys import VAL_BY_CLASS, VAL_LOSS, VAL_SAMPLES, VAL_TOP1, VAL_TOP5
from mim.pictures.confusion import draw_confusion
from mim.readouts import Predictor
from mim.structures import LabelSpec
from mim.tasks.base import BuiltTask
from mim.tasks.settings import ClassifyEvaluateSettings


@dataclass(eq=False, kw_only=True)
class Supervised(BuiltTask[Predictor], ABC):
    """A task with labels; mim.engine.protocol.Task explains the methods."""

    name = ""

    settings: ClassifyEvaluateSettings
    labels: str  # says which labelled images are trained on
    score: ClassVar[str] = VAL_TOP1  # the metric that chooses the best checkpoint, and among the settings of a probe

    @property
    def label_spec(self) -> LabelSpec:
        return self.model.criterion.spec

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The scalar loss of a micro-batch on the device."""

    def evaluate(self, model: Predictor, world: World) -> Report:
        """Metrics of the held-out images, each counted once; broken ones are left out and named."""
        if not len(self.held_out):
            return Report({}, {})
        results, broken = self.results(model, self.held_out, world)
        return self.report(results[0], broken, "")

    def results(self, model: Predictor, data: ImageDataset, world: World) -> tuple[list[Counts], dict[str, str]]:
        """The result of each readout on images, and the reason for each file that is left out."""
        samples = choose_samples(len(data), self.settings.samples, data.seed)
        parts = self.reader.read(data, samples, world.rank, world.size)
        counts = count_correct(model, self.preprocess, parts, self.label_spec.outputs, world)
        return counts, self.reader.settle(counts[0].samples, world)

    def best_of(self, results: Sequence[Counts]) -> int:
        """The position of the best result; the first of equal ones."""
        return max(range(len(results)), key=lambda number: results[number].score)

    def report(self, counts: Counts, broken: dict[str, str], title: str) -> Report:
        """The report of one readout: top-1, top-5, loss, accuracy by class and the confusion matrix."""
        names = self.label_spec.names
        top = {VAL_TOP1: counts.top1, **({VAL_TOP5: counts.top5} if len(names) > TOP else {})}
        pictures = {}
        if self.settings.confusion:
            start = ", ".join([self.name, *([title] if title else [])])
            text = f"{start}: {counts.top1:.1%} of {counts.samples:,} held-out images"
            pictures["confusion"] = draw_confusion(counts.confusion_KK, names, text)
        details = {VAL_BY_CLASS: counts.by_class(names), VAL_SAMPLES: counts.samples, **left_out_metrics(broken)}
        return Report({**top, VAL_LOSS: counts.loss}, pictures, details, score=VAL_TOP1)

    def describe(self) -> dict[str, str]:
        encoder = self.model.encoder
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        of_encoder = f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in encoder.parameters()):,}"
        return {
            "encoder": f"{encoder.title}; {encoder.spec.grid[0]} x {encoder.spec.grid[1]} tokens of width "
            f"{encoder.spec.width}; {of_encoder} parameters are trained",
            "readout": self._readouts(),
            "images": self.images_line(self.labels),
            **self.model_summary.describe(),
            **({} if len(self.held_out) else {"evaluation": "none: no images are held out"}),
        }

    def metadata(self) -> dict[str, Any]:
        return {CLASSES: list(self.label_spec.names), LABEL_KIND: self.label_spec.kind}

    def metrics(self) -> dict:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "labelled_images": len(self.train_data),
            **self.model_summary.metrics(),
        }

    def _readouts(self) -> str:
        names = ", ".join(dict.fromkeys(readout.title for readout in self.model.readouts))
        labels = f"{self.label_spec.outputs} {'numbers' if self.label_spec.kind == 'number' else 'classes'}"
        many = f", {len(self.model.readouts)} side by side" if len(self.model.readouts) > 1 else ""
        return f"{names}; {labels}, {self.model.criterion.name}{many}"


def count_correct(
    model: Predictor, preprocess: Preprocess, parts: Iterable[EvaluationBatch], classes: int, world: World
) -> list[Counts]:
    """The counts of each readout over these batches and all ranks."""
    tallies = [Tally(classes, world.device) for _ in model.readouts]
    for part in parts:
        images_BCHW, labels_B = part.batch.images_BCHW.to(world.device), part.batch.labels.to(world.device)
        for tally, scores_BK in zip(tallies, model(preprocess(images_BCHW)), strict=True):
            tally.add(scores_BK, labels_B)
    return [tally.over_ranks(world) for tally in tallies]
