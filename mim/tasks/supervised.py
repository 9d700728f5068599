"""Supervised: the base of fine-tuning and probes, with metrics of held-out images.

Shapes: B batch, C channels, H W pixels, N images, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.evaluation.metrics import CHOSEN_BY, Collector, Result, collector_for
from mim.evaluation.reading import EvaluationBatch, choose_samples, left_out_metrics
from mim.io.weights import CLASSES, LABEL_KIND
from mim.readouts import Predictor
from mim.structures import Features, LabelSpec
from mim.tasks.base import BuiltTask
from mim.tasks.held_out_pictures import draw_masks, draw_result
from mim.tasks.settings import ClassifyEvaluateSettings

Prepare = Callable[[Tensor], Tensor | Features]  # the model's input, from images as they are stored


@dataclass(eq=False, kw_only=True)
class Supervised(BuiltTask[Predictor], ABC):
    """A task with labels; mim.engine.protocol.Task explains the methods."""

    name = ""

    settings: ClassifyEvaluateSettings
    labels: str  # says which labelled images are trained on

    @property
    def label_spec(self) -> LabelSpec:
        return self.model.criterion.spec

    @property
    def score(self) -> str:
        """The key of the metric that chooses the best checkpoint, and among the settings of a probe."""
        return CHOSEN_BY[self.label_spec.kind]

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The scalar loss of a micro-batch on the device."""

    def evaluate(self, model: Predictor, world: World) -> Report:
        """Metrics of the held-out images, each counted once; broken ones are left out and named."""
        if not len(self.held_out):
            return Report({}, {})
        answers = self.answers_to(model, self.held_out, world)
        return self.report(model, answers, 0, "")

    def answers_to(self, model: Predictor, data: ImageDataset, world: World) -> "Answers":
        """The answers of each readout to images."""
        samples = choose_samples(len(data), self.settings.samples, data.seed)
        dataset, prepare = self.input_of(data)
        parts = self.reader.read(dataset, samples, world.rank, world.size)
        collectors, images = collect(model, prepare, parts, world)
        broken = self.reader.settle(images, world)
        groups_N = None if data.source.groups is None else data.source.groups[samples]
        return Answers(collectors, world, groups_N, broken)

    def input_of(self, data: ImageDataset) -> tuple[ImageDataset, Prepare]:
        """The data set that is read in place of another in an evaluation, and what makes the model's input of it."""
        return data, self.preprocess

    def report(self, model: Predictor, answers: "Answers", number: int, title: str) -> Report:
        """The report of one readout: metrics, their intervals and the pictures.

        Args:
            model: gave the answers.
            answers: to the held-out images.
            number: position of the readout.
            title: of its setting.
        """
        result = answers.result(number, self.settings.resamples, self.held_out.seed)
        pictures: dict[str, Tensor] = {}
        if self.settings.confusion:
            title = ", ".join([self.name, *([title] if title else [])])
            pictures = draw_result(result, self.label_spec, title)
            if self.label_spec.kind == "mask":
                images = (self.preprocess, self.held_out, self.settings.samples)
                pictures |= draw_masks(model, number, *images, title)
        details = {**result.details(), **left_out_metrics(answers.broken)}
        return Report(result.metrics, pictures, details, score=self.score if self.score in result.metrics else "")

    def describe(self) -> dict[str, str]:
        encoder = self.model.encoder
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        of_encoder = f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in encoder.parameters()):,}"
        return {
            "encoder": f"{encoder.title}; {encoder.spec.grid[0]} x {encoder.spec.grid[1]} tokens of width "
            f"{encoder.spec.width}; {of_encoder} parameters are trained",
            "readout": self._readouts(),
            **self.image_lines(self.labels),
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


@dataclass(frozen=True, slots=True)
class Answers:
    """What each readout answered to some images."""

    collectors: list[Collector]
    world: World
    groups_N: np.ndarray | None  # the group of each image
    broken: dict[str, str]  # the reason for each file that was left out

    def result(self, number: int, resamples: int, seed: int) -> Result:
        """The metrics of one readout. resamples: for intervals; 0 for none."""
        return self.collectors[number].result(self.world, self.groups_N, resamples, seed)

    def scores(self, key: str) -> list[float]:
        """A metric of each readout; minus infinity where it is not defined."""
        return [self.result(number, 0, 0).metrics.get(key, -math.inf) for number in range(len(self.collectors))]


def collect(
    model: Predictor, prepare: Prepare, parts: Iterable[EvaluationBatch], world: World
) -> tuple[list[Collector], int]:
    """The answers of each readout to these batches, and the number of images over all ranks."""
    criterion, images = model.criterion, 0
    collectors = [collector_for(criterion.spec, world.device) for _ in model.readouts]
    for part in parts:
        images += len(part.rows)
        labels = part.batch.labels.to(world.device)
        every = model(prepare(part.batch.images_BCHW.to(world.device)))
        for collector, scores in zip(collectors, every, strict=True):
            losses_B, _ = criterion.losses(scores, labels, plain=True)
            size = (labels.shape[1], labels.shape[2]) if criterion.spec.kind == "mask" else None
            collector.add(criterion.answers(scores, size), labels, part.rows, losses_B)
    return collectors, int(world.sum(torch.tensor([images], device=world.device)))
