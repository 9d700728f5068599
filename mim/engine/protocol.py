"""Task: all that the engine knows about what it trains."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.engine.distributed.world import World


@dataclass(frozen=True, slots=True)
class StepContext:
    """The position of a micro-batch in a run. All random numbers of a step are a function of it."""

    seed: int
    step: int  # optimizer steps before this one
    start: int  # row of the global batch at which this micro-batch begins
    batch: int  # rows of the global batch: of one optimizer step over all devices


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of a micro-batch, and what is logged beside it."""

    loss: Tensor  # scalar
    metrics: dict[str, Tensor] = field(default_factory=dict)  # scalars without gradient, by metric key; averaged

    def values(self) -> Tensor:
        """The loss and the metrics in one tensor, without gradient."""
        return torch.stack([self.loss.detach(), *(value.to(self.loss.dtype) for value in self.metrics.values())])


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an evaluation."""

    metrics: dict[str, float]  # by metric key
    pictures: dict[str, Tensor]  # (H, W, 3) uint8, by name
    details: dict[str, Any] = field(default_factory=dict)  # more values for the summary of the run
    score: str = ""  # key of the metric that chooses the best checkpoint, the higher the better; empty for none


class Task(Protocol):
    """What one step and one evaluation mean.

    Attributes: name, as in TASK; model, which is trained and saved; train_data, the samples of an epoch; fixed, modules
    without trained weights that must be on the device, such as the preprocessing.
    """

    name: str
    train_data: ImageDataset
    fixed: list[nn.Module]

    @property
    def model(self) -> nn.Module: ...

    def blocks(self) -> list[nn.Module]:
        """The units of activation checkpointing."""

    def shards(self) -> list[nn.Module]:
        """The units of sharding: the blocks, and those of networks without gradients."""

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        """Factors on the learning rate by name of the parameter; 1 for all others."""

    def weight_decays(self) -> dict[str, float]:
        """Weight decay by name of the parameter, for those that have another than the optimizer's."""

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor | StepLoss:
        """The scalar loss of a micro-batch on the device, perhaps with metrics, which have the same keys in every step.

        `model` is `self.model`, perhaps wrapped or compiled.
        """

    @property
    def prepares(self) -> bool:
        """Whether before_first_step does anything; the engine gathers the model for it only then."""

    def before_first_step(self, model: Any, world: World, folder: Path) -> None:
        """Called once in a process, before all steps and evaluations, with the model of `evaluate`.

        It may replace `train_data` by a data set of the same length. folder: of the run.
        """

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step on every rank. progress: share of the run's steps that are done."""

    def evaluate(self, model: Any, world: World) -> Report:
        """The report on held-out data. `model` is `self.model`, or a copy with other weights, as their average."""

    def describe(self) -> dict[str, str]:
        """What will be trained, a line each, for the start of a run."""

    def warnings(self, results: dict[str, Any]) -> list[str]:
        """What is wrong with the last results of a finished run, a sentence each."""

    def metadata(self) -> dict[str, Any]:
        """Plain values that a checkpoint holds beside the weights, because they say what these mean."""

    def metrics(self) -> dict[str, Any]:
        """What is known before the first step, for the summary of the run."""


def step_loss(loss: Tensor | StepLoss) -> StepLoss:
    """What Task.loss returned, with metrics, which may be none."""
    return StepLoss(loss) if isinstance(loss, Tensor) else loss


def share_of(value: Tensor, parts: int) -> Tensor:
    """The value / parts; of one part the value itself, as a GPU would launch a kernel to divide it by 1."""
    return value if parts == 1 else value / parts
