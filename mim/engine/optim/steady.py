"""Steady: a step that is not finite changes nothing, also with an optimizer that does not know of such steps."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


class Steady(torch.optim.Optimizer):
    """A base beside an optimizer of others: where `found_inf` is set, a step changes neither weights nor moments.

    On a GPU only the first step of a parameter waits for the device. Counts that an optimizer has on the host then
    count skipped steps, too, such as the number of steps in a bias correction.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # else a GradScaler makes the host wait for the device in each step

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        skip, self.found_inf = self.found_inf, None  # some of PyTorch's refuse it
        if skip is None or isinstance(skip, FakeTensor):  # which counts memory, and has no value
            super().step(closure)
            return
        trained = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if waits_for_nothing(skip) or not all(self.state.get(weight) for weight in trained):
            if not skip.item():  # host sync
                super().step(closure)
            return
        before = [(weight, weight.clone(), self._moments(weight)) for weight in trained]
        super().step(closure)
        for weight, old, moments in before:
            after = self._moments(weight, copies=False)
            restore(skip, [(weight, old), *((after[name], value) for name, value in moments.items())])

    def _moments(self, weight: Tensor, copies: bool = True) -> dict[str, Tensor]:
        """The state of a weight that is on its device, by name."""
        tensors = {name: value for name, value in self.state[weight].items() if isinstance(value, Tensor)}
        return {
            name: value.clone() if copies else value for name, value in tensors.items() if value.device == weight.device
        }


def steady(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class of an optimizer of others as a Steady one."""
    return type(f"Steady{optimizer.__name__}", (Steady, optimizer), {})


def waits_for_nothing(value: Tensor) -> bool:
    """Whether the host can read a value without waiting for a device."""
    return value.device.type == "cpu"


def restore(skip: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives each first tensor the values of the second, its old ones, where `skip` is set. No host sync."""
    for value, old in pairs:
        value.copy_(torch.where(skip > 0, old, value))
