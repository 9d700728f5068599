"""Watch: notices a non-finite step, on every rank at the same step, without making the host wait for the device."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

OVERFLOWS = 25  # fp16 steps in a row whose gradients may overflow while the loss scale comes down


@dataclass(frozen=True, slots=True)
class Health:
    """One step as the host saw it: the loss over all ranks, the gradient norm, and the samples of this rank."""

    step: int
    loss: float
    norm: float
    rate: float
    indices: tuple[int, ...]


class Watch:
    """Looks at each step's loss and norm, on a GPU two steps later, when their copy to the host is long done.

    The delay is a fixed number of steps, so that ranks, which see the same loss and norm, act at the same step.
    """

    def __init__(self, device: torch.device, may_overflow: bool):
        self.delay = 0 if device.type == "cpu" else 2
        self.may_overflow, self.overflows = may_overflow, 0
        self._pending: deque[tuple[int, float, tuple[int, ...], Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, rate: float, indices: tuple[int, ...], loss: Tensor, norm: Tensor) -> None:
        """Takes a step's loss and norm, both scalars on the device."""
        health = torch.stack([loss.detach().float(), norm.detach().float()])
        event = None
        if health.is_cuda:
            health = torch.empty(2, pin_memory=True).copy_(health, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, rate, indices, health, event))

    def unhealthy(self, drain: bool = False) -> Health | None:
        """The first step that must end the run, or None. `drain` looks at every step taken, waiting for the device."""
        while len(self._pending) > (0 if drain else self.delay):
            step, rate, indices, health, event = self._pending.popleft()
            if event is not None:
                event.synchronize()  # waits for a copy made two steps ago, not for the device to be idle
            loss, norm = health.tolist()
            seen = Health(step, loss, norm, rate, indices)
            if not torch.isfinite(health[0]):
                return seen
            self.overflows = 0 if torch.isfinite(health[1]) else self.overflows + 1
            if self.overflows > (OVERFLOWS if self.may_overflow else 0):
                return seen
        return None
