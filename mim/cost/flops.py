"""Operations of each part of a model. A multiply-add counts as two.

Matrix products, convolutions and attention are counted, by mim/cost/formulas.py and PyTorch's FlopCounterMode;
normalisations and element-wise operations are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mim.cost.formulas import operation_counter


@dataclass(frozen=True, slots=True)
class Work:
    """Operations on one image."""

    forward: int  # of the forward pass
    training: int  # of forward and backward pass


def count_work(
    parts: Sequence[tuple[str, Callable[[Any], Any]]], value: Any, images: int
) -> tuple[list[Any], dict[str, Work]]:
    """The outcome of each part, and the work of each on one image. Parts of one name are added up.

    The last outcome is the loss. Autograd runs a backward pass in the reverse order of the forward pass, so that the
    operations of a part lie between the gradients of its outcome and of its input.

    Args:
        parts: name and function of each. A part is called with the outcome of the part before it.
        value: what the first part is called with, a batch of `images` images.
    """
    outcomes: list[Any] = []
    forward: list[int] = []
    arrivals: dict[int, int] = {}  # operations counted when the gradient of an outcome arrives, by its index

    def note_arrival(index: int, gradient: Tensor) -> None:
        arrivals.setdefault(index, counter.get_total_flops())

    with operation_counter() as counter:
        for index, (_, run) in enumerate(parts):
            before = counter.get_total_flops()
            value = run(value)
            outcomes.append(value)
            forward.append(counter.get_total_flops() - before)
            for tensor in _tensors(value):
                if tensor.requires_grad:
                    tensor.register_hook(partial(note_arrival, index))
        if value.requires_grad:
            value.backward()
        total = counter.get_total_flops()
    work: dict[str, Work] = {}
    for index, (name, _) in enumerate(parts):
        end = arrivals.get(index - 1, total)
        backward = end - arrivals.get(index, end)
        old = work.get(name, Work(0, 0))
        work[name] = Work(old.forward + forward[index], old.training + forward[index] + backward)
    return outcomes, {name: Work(each.forward // images, each.training // images) for name, each in work.items()}


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a tensor, of a tuple or of a dataclass."""
    if isinstance(value, Tensor):
        return [value]
    values = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else value
    return [tensor for each in values if isinstance(each, Tensor | tuple) for tensor in _tensors(each)]
