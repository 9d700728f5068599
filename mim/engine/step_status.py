"""StepMonitor: what all ranks must know about each step, without a host that waits for the device.

Were loss and gradients finite? Was a rank asked to end the run? Is a checkpoint due?
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

OVERFLOWS = 25  # fp16 steps in a row that may overflow while the loss scale comes down


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step, as the host sees it."""

    step: int
    loss: float  # mean over all ranks
    norm: float  # of the gradient
    rate: float  # learning rate
    indices: tuple[int, ...]  # samples of this rank
    harmful: bool  # loss or gradient are not finite, and it is no overflow that a loss scale must find
    end_requested: bool  # a rank was asked to end the run
    save_due: bool  # by the clock of the main rank


class StepMonitor:
    """Reads the status of each step: at once on a CPU, and on a GPU two steps later, when it is on the host.

    The delay is a fixed number of steps, so all ranks see the same values at the same step.
    """

    def __init__(self, device: torch.device, may_overflow: bool):
        self.delay = 0 if device.type == "cpu" else 2
        self.may_overflow, self.overflows = may_overflow, 0
        self._pending: deque[tuple[int, float, tuple[int, ...], Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, rate: float, indices: tuple[int, ...], scalars: tuple[Tensor, ...]) -> None:
        """Takes a step. scalars: on the device: loss, norm, ranks that were asked to end, ranks that want to save."""
        values = torch.stack([scalar.detach().float() for scalar in scalars])
        event = None
        if values.is_cuda:
            values = torch.empty(len(scalars), pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, rate, indices, values, event))

    def look(self, drain: bool = False) -> list[StepStatus]:
        """The steps that have waited long enough, in order. `drain`: all steps; this waits for the device."""
        statuses = []
        while len(self._pending) > (0 if drain else self.delay):
            step, rate, indices, values, event = self._pending.popleft()
            if event is not None:
                event.synchronize()  # waits for a copy of two steps ago, not until the device is idle
            loss, norm, end_requests, saves = values.tolist()
            finite_loss, finite_norm = torch.isfinite(values[:2]).tolist()
            self.overflows = 0 if finite_norm else self.overflows + 1
            harmful = not finite_loss or self.overflows > (OVERFLOWS if self.may_overflow else 0)
            statuses.append(StepStatus(step, loss, norm, rate, indices, harmful, end_requests > 0, saves > 0))
        return statuses
