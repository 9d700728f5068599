"""Real training steps on this machine: their time and their memory."""

import ctypes
import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch.autograd.profiler import profile

from mim.engine.distributed.world import World
from mim.engine.plan import Plan
from mim.lab.dryrun.task import DryTask
from mim.lab.dryrun.trainer import MAX_MICRO_BATCHES, DryTrainer, Phase, PhaseCallback

WARMUP_STEPS = 2  # not timed: the first makes the optimizer's state
PhaseSeconds = dict[Phase, float]  # of one step
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class StepMeasurement:
    """Real steps on one device."""

    steps: int  # how many were timed
    micro_s: float  # seconds of forward and backward pass of one micro-batch, the median
    update_s: float  # seconds of clipping and of the optimizer, once per step, the median
    tensors: int  # bytes of tensors at the peak
    process: int | None  # bytes by which the process grew; None where the system does not say


def measure_steps(dry: DryTask, plan: Plan, steps: int, device: torch.device) -> StepMeasurement:
    """Takes real steps of this plan on random images, as one of its devices, after two that are not timed."""
    timed = TimedSteps(lambda on_phase: dry_trainer(dry, plan, device, on_phase).take_step, device)
    return timed.summarise(timed.take(steps), min(plan.accumulation, MAX_MICRO_BATCHES))


def dry_trainer(
    dry: DryTask,
    plan: Plan,
    device: torch.device,
    on_phase: PhaseCallback,
    *,
    compiled: bool = True,
    real: bool = False,
    world: World | None = None,
) -> DryTrainer:
    """The run's trainer before its first step.

    Args:
        compiled: False turns TRAIN.compile off.
        real: whether dataloader workers read the run's own images, in place of random ones.
    """
    task, settings = dry.one_step_task(plan), dry.engine_settings(compiled)
    task.model = dry.build_model()
    if real:
        task.train_data = dry.task.train_data
    return DryTrainer(task, settings, plan, dry.noise, device, on_phase, settings.workers if real else None, world)


class TimedSteps:
    """Builds a trainer, takes two warm-up steps, and then times the phases of further steps.

    make: builds the trainer and returns what takes one step. Its argument is called at each phase of a step.
    Attributes: warmup (the seconds of the warm-up steps), tensors and process (as in StepMeasurement).
    """

    def __init__(self, make: Callable[[PhaseCallback], Callable[[], None]], device: torch.device):
        _return_freed_memory(device)
        before, self._clock = _resident_bytes() if _reset_peak() else None, PhaseClock(device)
        with _PeakTensors(device) as peak:
            self._step = make(self._clock.on_phase)
            for _ in range(WARMUP_STEPS):
                self._step()
        after = _resident_bytes("VmHWM")
        self.warmup, self.tensors = self._clock.read(), peak.bytes
        self.process = None if before is None or after is None else after - before

    def take(self, steps: int) -> list[PhaseSeconds]:
        for _ in range(steps):
            self._step()
        return self._clock.read()

    def summarise(self, steps: Sequence[PhaseSeconds], accumulation: int) -> StepMeasurement:
        """Summarises steps of `accumulation` micro-batches each."""
        micro_s = median((step["forward"] + step["backward"]) / accumulation for step in steps)
        update_s, tensors, process = median(step["update"] for step in steps), self.tensors, self.process
        return StepMeasurement(len(steps), micro_s, update_s, tensors, process)


class PhaseClock:
    """Times each phase of each step. On a GPU it takes the GPU's own times, and the host does not wait for them."""

    def __init__(self, device: torch.device):
        self.device = device
        self._marks: list[tuple[Phase, Any]] = []

    def on_phase(self, phase: Phase) -> None:
        """Notes that a phase begins; "end" ends the step."""
        if self.device.type != "cuda":
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._marks.append((phase, event))

    def read(self) -> list[PhaseSeconds]:
        """The times of each step since the last call. The time between two steps counts as update of the first."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps: list[PhaseSeconds] = []
        seconds: defaultdict[Phase, float] = defaultdict(float)
        for (phase, start), (_, end) in pairwise([*self._marks, *self._marks[-1:]]):
            seconds["update" if phase == "end" else phase] += self._seconds(start, end)
            if phase == "end":
                steps.append(dict(seconds))
                seconds.clear()
        self._marks.clear()
        return steps

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start


class _PeakTensors:
    """The most bytes of tensors made inside, by the records of PyTorch's allocator."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def __enter__(self) -> Self:
        gc.collect()  # otherwise memory of earlier work would be freed inside
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints that there is no GPU
        self._record = profile(use_kineto=False, profile_memory=True)
        self._record.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._record.__exit__(*error)
        events: Any = self._record.kineto_results
        sizes = [(event.start_ns(), event.nbytes()) for event in events.events() if event.name() == "[memory]"]
        self.bytes = max(accumulate(size for _, size in sorted(sizes)), default=0)


def _resident_bytes(key: str = "VmRSS") -> int | None:
    """Memory of this process now, or (VmHWM) its peak since _reset_peak; None where the system does not say."""
    try:
        words = next(line.split() for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    except (OSError, StopIteration):
        return None
    return int(words[1]) * 1024


def _reset_peak() -> bool:
    """Resets the system's record of the peak; False where it cannot."""
    try:
        RESET.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _return_freed_memory(device: torch.device) -> None:
    """Returns freed memory to the system. Otherwise the process would not grow for what comes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # a C library other than GNU's, or Windows
        ctypes.CDLL(None).malloc_trim(0)
