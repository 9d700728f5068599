"""Real training steps on this machine: the time and the memory that they take."""

import gc
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch.autograd.profiler import profile

from mim.engine.rehearsal import Phase, Rehearsal
from mim.engine.settings import Plan
from mim.plan.bare import Bare

WARM = 2  # steps before the clock counts: the first makes the optimizer's state
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Real steps on one device.

    micro_s: seconds of forward and backward of one micro-batch; update_s: of clipping and stepping, once a step;
    tensors: bytes of tensors at the peak; process: bytes by which the process grew for it, None where not known.
    """

    steps: int
    micro_s: float
    update_s: float
    tensors: int
    process: int | None


def measure(bare: Bare, plan: Plan, steps: int, device: torch.device) -> Measured:
    """Takes real steps of this plan, as one of its devices, on random images, after two that do not count."""
    held, clock = _resident() if _forget() else None, _Clock(device)
    with _Peak(device) as peak:
        task = bare.of_one_step(plan)
        task.model = bare.model()
        rehearsal = Rehearsal(task, bare.engine(), plan, bare.noise, device, clock.entered)
        for _ in range(WARM):
            rehearsal.take_step()
    clock.steps.clear()
    for _ in range(steps):
        rehearsal.take_step()
    most = _resident("VmHWM")
    micro = [(step["forward"] + step["backward"]) / rehearsal.plan.accumulation for step in clock.steps]
    return Measured(
        steps=steps,
        micro_s=median(micro),
        update_s=median(step["update"] for step in clock.steps),
        tensors=peak.bytes,
        process=None if held is None or most is None else most - held,
    )


class _Clock:
    """Seconds of each phase of each step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._phase, self._since = "", 0.0

    def entered(self, phase: Phase) -> None:
        if self.device.type == "cuda" and phase in ("update", "end"):
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self._spent[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if phase == "end":
            self.steps.append(self._spent)
            self._spent = defaultdict(float)


class _Peak:
    """The most bytes that tensors made inside took at once, by the record of PyTorch's allocator."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def __enter__(self) -> Self:
        gc.collect()  # or what earlier work left behind would be freed inside
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it speaks of a missing GPU otherwise
        self._record = profile(use_kineto=False, profile_memory=True)
        self._record.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._record.__exit__(*error)
        found: Any = self._record.kineto_results
        events = [(event.start_ns(), event.nbytes()) for event in found.events() if event.name() == "[memory]"]
        self.bytes = max(accumulate(size for _, size in sorted(events)), default=0)


def _resident(key: str = "VmRSS") -> int | None:
    """Bytes of memory of this process, now or (VmHWM) at most since _forget; None where the system does not tell."""
    try:
        words = next(line.split() for line in STATUS.read_text().splitlines() if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(words[1]) * 1024


def _forget() -> bool:
    """Lets the record of the most memory begin anew; False where the system does not do that."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True
