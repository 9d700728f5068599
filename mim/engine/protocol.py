"""Task: all that the engine knows of what it trains."""

from typing import Any, Protocol

from torch import Tensor, nn

from mim.data.loader import ImageDataset
from mim.engine.distributed import World
from mim.structures import Batch, Place, Report


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

    def rate_factors(self, layer_decay: float) -> dict[str, float]:
        """What multiplies the learning rate of a parameter of the model, by name; 1 for those not in it."""

    def loss(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """The scalar loss of a micro-batch on the device. `model` is `self.model`, perhaps wrapped or compiled."""

    def evaluate(self, model: Any, world: World) -> Report:
        """Figures and pictures on held-out data. `model` is `self.model`, or a copy of it with other weights (EMA)."""

    def describe(self) -> dict[str, str]:
        """What will be trained, for the start of a run: a line each."""

    def figures(self) -> dict[str, Any]:
        """What is known before the first step, for summary.json."""
