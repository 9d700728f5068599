"""Real training steps on this machine: the time and the memory that they take."""

import ctypes
import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch.autograd.profiler import profile

from mim.engine.distributed.world import World
from mim.engine.settings import Plan
from mim.lab.dryrun.task import Bare
from mim.lab.dryrun.trainer import AGAIN, Entered, Phase, Rehearsal

WARM = 2  # steps before the clock counts: the first makes the optimizer's state
Spent = dict[Phase, float]  # seconds of a step
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
    timed = Timed(lambda entered: rehearse(bare, plan, device, entered).take_step, device)
    return timed.measured(timed.take(steps), min(plan.accumulation, AGAIN))


def rehearse(
    bare: Bare,
    plan: Plan,
    device: torch.device,
    entered: Entered,
    *,
    compiled: bool = True,
    real: bool = False,
    world: World | None = None,
) -> Rehearsal:
    """The run's own trainer, as one of the plan's devices, before its first step.

    compiled: as TRAIN.compile says, else not at all; real: on the run's own images, read by its loader processes, else
    on random ones; world: as in Rehearsal.
    """
    task = bare.of_one_step(plan)
    task.model = bare.model()
    if real:
        task.train_data = bare.task.train_data
    engine = bare.engine(compiled)
    return Rehearsal(task, engine, plan, bare.noise, device, entered, engine.workers if real else None, world)


class Timed:
    """What trains, with the seconds of each phase of its steps; two steps that do not count are taken at once.

    Args:
        make: builds it and gives what takes a step; it is given whom it must tell of each phase as that begins, and of
            the end.

    Attributes: warm: the seconds of these first steps, by phase; tensors, process: as in Measured.
    """

    def __init__(self, make: Callable[[Entered], Callable[[], None]], device: torch.device):
        _return_freed_memory(device)
        held, self._clock = _resident() if _forget() else None, Clock(device)
        with _Peak(device) as peak:
            self._step = make(self._clock.entered)
            for _ in range(WARM):
                self._step()
        most = _resident("VmHWM")
        self.warm = self._clock.read()
        self.tensors = peak.bytes
        self.process = None if held is None or most is None else most - held

    def take(self, steps: int) -> list[Spent]:
        """Takes so many steps."""
        for _ in range(steps):
            self._step()
        return self._clock.read()

    def measured(self, steps: Sequence[Spent], accumulation: int) -> Measured:
        """Steps of so many micro-batches in one value."""
        return Measured(
            steps=len(steps),
            micro_s=median((step["forward"] + step["backward"]) / accumulation for step in steps),
            update_s=median(step["update"] for step in steps),
            tensors=self.tensors,
            process=self.process,
        )


class Clock:
    """Seconds of each phase of each step; on a GPU those of its own time, for which the host does not wait."""

    def __init__(self, device: torch.device):
        self.device = device
        self._marks: list[tuple[Phase, Any]] = []

    def entered(self, phase: Phase) -> None:
        """A phase begins; `end`: the step is over."""
        self._marks.append((phase, self._now()))

    def read(self) -> list[Spent]:
        """Of each step since the last reading. What passes between two steps belongs to the update of the first."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps: list[Spent] = []
        spent: defaultdict[Phase, float] = defaultdict(float)
        for place, (phase, since) in enumerate(self._marks):
            until = self._marks[place + 1][1] if place + 1 < len(self._marks) else since
            spent["update" if phase == "end" else phase] += self._seconds(since, until)
            if phase == "end":
                steps.append(dict(spent))
                spent.clear()
        self._marks.clear()
        return steps

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _seconds(self, since: Any, until: Any) -> float:
        return since.elapsed_time(until) / 1000 if self.device.type == "cuda" else until - since


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


def _return_freed_memory(device: torch.device) -> None:
    """What earlier work has freed goes back to the system, or the process would not grow for what comes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # a C library that is not GNU's
        ctypes.CDLL(None).malloc_trim(0)
