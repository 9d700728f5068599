"""Optimizer: the family of parts that turn gradients into steps. What they work on: groups.py."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch

from mim.engine.schedule import Schedule
from mim.io.checks import at_least
from mim.registry import Component


class Optimizer(Component, ABC, section="OPTIMIZER"):
    """The keys that all optimizers share. `prepare` sets learning rate and weight decay of each group before a step.

    Args:
        base_lr: learning rate at a batch of per_batch images; it is scaled linearly with the batch of a step.
        per_batch: images to which base_lr refers. Source: MAE (256); SimMIM (512).
        weight_decay: decay of all weights but biases, 1-D parameters and those that no_decay names.
        weight_decay_end: weight decay at the end of the run, to which it goes by half a cosine over all steps; `none`:
            it does not change. Source: DINO, utils.py, cosine_scheduler, and I-JEPA, which is one step ahead of it
            (both 0.04 to 0.4).
        no_decay: more parameters without weight decay, each named by the end of its dotted name, such as
            `encoder.mask_token` or `pos_embed`.
        layer_decay: factor on the learning rate of an encoder layer for each layer above it, up to the head; 1 for
            none. Source: BEiT; MAE, util/lr_decay.py; SimMIM, optimizer.py.

    Attributes: moments, the numbers that it keeps for each weight; counters, the values of groups that its steps
    change, which checkpoints hold; averages, whether other weights are evaluated than those that are trained; sharded,
    whether its steps are right where each device has a shard of each weight.
    """

    moments: ClassVar[int] = 1
    counters: ClassVar[tuple[str, ...]] = ()
    averages: ClassVar[bool] = False
    sharded: ClassVar[bool] = True

    def __init__(
        self,
        *,
        base_lr: float = 1.5e-4,
        per_batch: int = 256,
        weight_decay: float = 0.05,
        weight_decay_end: float | Literal["none"] = "none",
        no_decay: tuple[str, ...] = (),
        layer_decay: float = 1.0,
    ):
        at_least("OPTIMIZER", 1, per_batch=per_batch)
        at_least("OPTIMIZER", 0, base_lr=base_lr, weight_decay=weight_decay)
        if not 0 < layer_decay <= 1:
            raise ValueError(f"OPTIMIZER.layer_decay is {layer_decay}: it must be above 0 and at most 1")
        self.base_lr, self.per_batch, self.layer_decay = base_lr, per_batch, layer_decay
        self.weight_decay, self.no_decay = weight_decay, no_decay
        self.weight_decay_end = weight_decay if weight_decay_end == "none" else weight_decay_end
        at_least("OPTIMIZER", 0, weight_decay_end=self.weight_decay_end)

    @abstractmethod
    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        """The optimizer of what parameter_groups returned. Where `found_inf` is set, its step changes nothing."""

    def averaged(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager:
        """Inside, the parameters have the weights that are evaluated; after it those that are trained, to the bit.

        optimizer: what `build` returned. All ranks must enter it.
        """
        return nullcontext()

    def warnings(self, schedule: Schedule) -> list[str]:
        """What does not suit the schedule of a run, a sentence each."""
        return []

    def weight_decay_at(self, progress: float) -> float:
        """The weight decay of a step. progress: share of the run's steps before it."""
        start, end = self.weight_decay, self.weight_decay_end
        return start if start == end else end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    def prepare(self, groups: list[dict], rate: Callable[[float], float], progress: float) -> None:
        """Sets the learning rate and the weight decay of each group for a step.

        Args:
            groups: those of parameter_groups.
            rate: the learning rate of a group with this lr_scale.
            progress: share of the run's steps before this one.
        """
        weight_decay = self.weight_decay_at(progress)
        for group in groups:
            group["lr"] = rate(group["lr_scale"])
            own = weight_decay if group["own_weight_decay"] is None else group["own_weight_decay"]
            group["weight_decay"] = 0.0 if group["no_weight_decay"] else own


def check_momentum(momentum: float) -> None:
    """Raises ValueError where OPTIMIZER.momentum is not at least 0 and below 1."""
    if not 0 <= momentum < 1:
        raise ValueError(f"OPTIMIZER.momentum is {momentum}: it must be at least 0 and below 1")


def check_betas(betas: Sequence[float]) -> None:
    """Raises ValueError where one of OPTIMIZER.betas is not at least 0 and below 1."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"OPTIMIZER.betas is {list(betas)}: each must be at least 0 and below 1")
