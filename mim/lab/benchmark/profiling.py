"""Profiles: the time of a training step by operator and by kernel class."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mim.lab.benchmark.kernel_classes import KERNEL_CLASSES, KernelClass, class_of
from mim.lab.dryrun.measure import TimedSteps

STEPS = 3
SPAN = "(Python, between operators)"


@dataclass(frozen=True, slots=True)
class Operator:
    """All calls of one operator in a step, without the operators that it calls."""

    name: str  # as torch.profiler records it
    kernel_class: KernelClass  # its kind of work
    calls: float  # per step, the mean
    seconds: float  # per step, the mean; on a GPU, of the kernels that it starts


@dataclass(frozen=True, slots=True)
class Profile:
    """A step of one contender by operator."""

    contender: str  # its name
    device: str  # cpu or cuda
    operators: tuple[Operator, ...]  # the slowest first

    @property
    def seconds(self) -> float:
        """Seconds of a step. The profiler slows it down."""
        return sum(operator.seconds for operator in self.operators)

    def class_seconds(self) -> dict[KernelClass, float]:
        """Seconds of a step by kernel class."""
        seconds = dict.fromkeys(KERNEL_CLASSES, 0.0)
        for operator in self.operators:
            seconds[operator.kernel_class] += operator.seconds
        return seconds


@contextmanager
def visible_kernels() -> Iterator[None]:
    """Inside, compiled CPU kernels report to the profiler, which they do not do by default."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints that there is no GPU
    import torch._inductor.config as inductor  # slow to import

    with inductor.patch({"cpp.enable_kernel_profile": True}):
        yield


def take_profile(contender: str, timed: TimedSteps, device: torch.device) -> Profile:
    """Profiles some steps of a contender that was built under `visible_kernels`."""
    cuda = device.type == "cuda"
    timed.take(1)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as record:
        for _ in range(STEPS):
            with record_function(SPAN):
                timed.take(1)
    operators = [
        Operator(row.key, class_of(row.key), row.count / STEPS, microseconds / 1e6 / STEPS)
        for row in record.key_averages()
        if row.device_type == torch.autograd.DeviceType.CPU  # kernels of a GPU count for what starts them
        and (microseconds := row.self_device_time_total if cuda else row.self_cpu_time_total) > 0
    ]
    return Profile(contender, device.type, tuple(sorted(operators, key=lambda operator: -operator.seconds)))
