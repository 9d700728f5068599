"""StepMonitor: what ranks must know of each step and agree about, without making the host wait for the device.

Whether the loss and the gradients were finite, whether a rank was asked to end the run, and when to save.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

OVERFLOWS = 25  # fp16 steps in a row whose gradients may overflow while the loss scale comes down


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step as the host saw it: the loss over all ranks, the gradient norm, and the samples of this rank.

    harmful: whether loss or gradients were not finite, beyond what a loss scale that comes down explains; asked:
    whether a rank had been asked to end the run; due: whether it was time to save.
    """

    step: int
    loss: float
    norm: float
    rate: float
    indices: tuple[int, ...]
    harmful: bool
    asked: bool
    due: bool


class StepMonitor:
    """Looks at each step, on a GPU two steps later, when the copy of its figures to the host is long done.

    The delay is a fixed number of steps, so that ranks, which see the same figures, act at the same step.
    """

    def __init__(self, device: torch.device, may_overflow: bool):
        self.delay = 0 if device.type == "cpu" else 2
        self.may_overflow, self.overflows = may_overflow, 0
        self._pending: deque[tuple[int, float, tuple[int, ...], Tensor, torch.cuda.Event | None]] = deque()

    def add(
        self, step: int, rate: float, indices: tuple[int, ...], told: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> None:
        """Takes a step's loss, norm, ranks that were asked to end, and whether to save: scalars on the device."""
        figures = torch.stack([figure.detach().float() for figure in told])
        event = None
        if figures.is_cuda:
            figures = torch.empty(len(told), pin_memory=True).copy_(figures, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, rate, indices, figures, event))

    def look(self, drain: bool = False) -> list[StepStatus]:
        """The steps that are due, in order. `drain`: every step taken, waiting for the device."""
        found = []
        while len(self._pending) > (0 if drain else self.delay):
            step, rate, indices, figures, event = self._pending.popleft()
            if event is not None:
                event.synchronize()  # waits for a copy made two steps ago, not for the device to be idle
            loss, norm, asked, due = figures.tolist()
            finite_loss, finite_norm = torch.isfinite(figures[:2]).tolist()
            self.overflows = 0 if finite_norm else self.overflows + 1
            harmful = not finite_loss or self.overflows > (OVERFLOWS if self.may_overflow else 0)
            found.append(StepStatus(step, loss, norm, rate, indices, harmful, asked > 0, due > 0))
        return found
