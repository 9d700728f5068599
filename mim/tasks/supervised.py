"""Classify: the base of fine-tuning and linear probing, with accuracy on held-out images.

Shapes: B batch, C channels, H W pixels, K classes, L linear layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from mim.data.batch import Batch
from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.evaluation.accuracy import TOP, Counts, Tally
from mim.evaluation.reading import EvaluationBatch, choose_samples, left_out_metrics
from mim.io.weights import CLASSES
from mim.metric_keys import VAL_BY_CLASS, VAL_LOSS, VAL_SAMPLES, VAL_TOP1, VAL_TOP5
from mim.pictures.confusion import draw_confusion
from mim.readouts.classifier import Classifier
from mim.tasks.base import BuiltTask
from mim.tasks.settings import ClassifyEvaluateSettings


@dataclass(eq=False, kw_only=True)
class Classify(BuiltTask[Classifier], ABC):
    """A task with class scores; mim.engine.protocol.Task explains the methods."""

    name = ""

    classes: tuple[str, ...]
    settings: ClassifyEvaluateSettings
    labels: str  # says which labelled images are trained on

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The scalar loss of a micro-batch on the device."""

    @abstractmethod
    def report(self, counts: list[Counts]) -> Report:
        """Figures and pictures of held-out counts, one for each linear layer."""

    def evaluate(self, model: Classifier, world: World) -> Report:
        """Accuracy on the held-out images, each counted once; broken ones are left out and named."""
        if not len(self.held_out):
            return Report({}, {})
        samples = choose_samples(len(self.held_out), self.settings.samples, self.held_out.seed)
        parts = self.reader.read(self.held_out, samples, world.rank, world.size)
        counts = count_correct(model, self.preprocess, parts, len(self.classes), world)
        broken = self.reader.settle(counts[0].samples, world)
        report = self.report(counts)
        return replace(report, details={**report.details, **left_out_metrics(broken)})

    def describe(self) -> dict[str, str]:
        model, encoder = self.model, self.model.encoder
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        of_encoder = f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in encoder.parameters()):,}"
        return {
            "encoder": f"{encoder.title}; {encoder.spec.grid[0]} x {encoder.spec.grid[1]} tokens of width "
            f"{encoder.spec.width}; {of_encoder} parameters are trained",
            "classifier": f"{model.pool} pooling, {len(self.classes)} classes"
            + (f", {len(model.heads)} linear layers side by side" if len(model.heads) > 1 else ""),
            "images": self.images_line(self.labels),
            **self.model_summary.describe(),
            **({} if len(self.held_out) else {"evaluation": "none: no images are held out"}),
        }

    def metadata(self) -> dict[str, list[str]]:
        return {CLASSES: list(self.classes)}

    def metrics(self) -> dict:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "labelled_images": len(self.train_data),
            **self.model_summary.metrics(),
        }

    def report_of(self, counts: Counts, metrics: dict[str, float], title: str) -> Report:
        """The report of one linear layer: top-1, top-5, loss, accuracy by class and the confusion matrix."""
        top = {VAL_TOP1: counts.top1, **({VAL_TOP5: counts.top5} if len(self.classes) > TOP else {})}
        pictures = {}
        if self.settings.confusion:
            title = f"{title}: {counts.top1:.1%} of {counts.samples:,} held-out images"
            pictures["confusion"] = draw_confusion(counts.confusion_KK, self.classes, title)
        details = {VAL_BY_CLASS: counts.by_class(self.classes), VAL_SAMPLES: counts.samples}
        return Report({**top, VAL_LOSS: counts.loss, **metrics}, pictures, details, score=VAL_TOP1)


def count_correct(
    model: Classifier, preprocess: Preprocess, parts: Iterable[EvaluationBatch], classes: int, world: World
) -> list[Counts]:
    """The counts of each linear layer of a classifier over these batches and all ranks."""
    tallies = [Tally(classes, world.device) for _ in model.heads]
    for part in parts:
        images_BCHW, labels_B = part.batch.images_BCHW.to(world.device), part.batch.labels_B.to(world.device)
        for tally, scores_BK in zip(tallies, model(preprocess(images_BCHW)), strict=True):
            tally.add(scores_BK, labels_B)
    return [tally.over_ranks(world) for tally in tallies]
