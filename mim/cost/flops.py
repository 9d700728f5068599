"""Operations of each part of a model, by PyTorch's own counter: a multiply-add counts as two.

Matrix products, convolutions and attention are counted; normalisations and the like are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Work:
    """Operations on one image: of the forward pass, and of forward and backward together."""

    forward: int
    training: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A part at work. before: what the stage before it answered; given: the same, with gradients that end there;
    outcome: what it answered to that; forward: its operations.
    """

    part: str
    before: Any
    given: Any
    outcome: Any
    forward: int


def at_work(part: str, run: Callable[[Any], Any], before: Any) -> Stage:
    """Runs a part on a tensor, or on a dataclass that holds tensors, such as Features."""
    given = _cut(before)
    with FlopCounterMode(display=False) as counter:
        outcome = run(given)
    return Stage(part, before, given, outcome, counter.get_total_flops())


def work_of(stages: Sequence[Stage], images: int) -> dict[str, Work]:
    """The work on one image, by part, of stages that saw so many, the last of which answered with the loss.

    Runs the backward pass of each from the gradients that the stage after it left where it was cut.
    """
    forward: dict[str, int] = {}
    backward: dict[str, int] = {}
    loss = stages[-1].outcome
    ends, gradients = [loss], [torch.ones_like(loss)]
    for stage in reversed(stages):
        with FlopCounterMode(display=False) as counter:
            if ends:
                torch.autograd.backward(ends, gradients)
        forward[stage.part] = forward.get(stage.part, 0) + stage.forward
        backward[stage.part] = backward.get(stage.part, 0) + counter.get_total_flops()
        before, given = _tensors(stage.before), _tensors(stage.given)
        reached = {name: leaf.grad for name, leaf in given.items() if leaf.grad is not None}
        ends, gradients = [before[name] for name in reached], list(reached.values())
    return {
        part: Work(forward[part] // images, (forward[part] + backward[part]) // images) for part in reversed(forward)
    }


def _cut(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return replace(value, **{name: _cut(tensor) for name, tensor in _tensors(value).items()})


def _tensors(value: Any) -> dict[str, Tensor]:
    """The tensors of a value, by name."""
    if isinstance(value, Tensor):
        return {"": value}
    held = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
