"""Task: all that the engine knows of what it trains."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from mim.data.batch import Batch
from mim.data.loading.loader import ImageDataset
from mim.engine.distributed.world import World


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where in a run a micro-batch stands; with the seed, the source of everything random.

    step: optimizer steps done before this one; start: row of the global batch at which this micro-batch begins;
    batch: rows of the global batch, that is of one optimizer step over all devices.
    """

    seed: int
    step: int
    start: int
    batch: int


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found: figures by name, and pictures (H, W, 3) uint8 by name.

    details: what only summary.json holds; score: the figure by which the best checkpoint is chosen, the higher the
    better, or empty where none is.
    """

    figures: dict[str, float]
    pictures: dict[str, Tensor]
    details: dict[str, Any] = field(default_factory=dict)
    score: str = ""


class Task(Protocol):
    """What one step and one evaluation mean.

    name: as in TASK; model: what is trained, and what a checkpoint holds; train_data: the samples of an epoch;
    fixed: modules without trained weights that must be on the device, such as the normalisation.
    """

    name: str
    train_data: ImageDataset
    fixed: list[nn.Module]

    @property
    def model(self) -> nn.Module: ...

    def blocks(self) -> list[nn.Module]:
        """The units of activation checkpointing."""

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        """What multiplies the learning rate of a parameter of the model, by name; 1 for those not in it."""

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The scalar loss of a micro-batch on the device. `model` is `self.model`, perhaps wrapped or compiled."""

    def evaluate(self, model: Any, world: World) -> Report:
        """Figures and pictures on held-out data. `model` is `self.model`, or a copy of it with other weights (EMA)."""

    def describe(self) -> dict[str, str]:
        """What will be trained, for the start of a run: a line each."""

    def figures(self) -> dict[str, Any]:
        """What is known before the first step, for summary.json."""
