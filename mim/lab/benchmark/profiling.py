"""Profiles: where the time of a training step goes, by operator and by kind of work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mim.lab.benchmark.kernel_classes import KINDS, Kind, kind_of
from mim.lab.dryrun.measure import TimedSteps

STEPS = 3
SPAN = "(Python, between operators)"
BATCHED = ("aten::bmm", "aten::baddbmm")


@dataclass(frozen=True, slots=True)
class Operator:
    """Everything of one name in a step. calls, seconds: of a step, on average, without what it calls in turn."""

    name: str
    kind: Kind
    calls: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """The time of a step of one side by operator, the longest first; `of`: what was busy, cpu or cuda."""

    side: str
    of: str
    operators: tuple[Operator, ...]

    @property
    def seconds(self) -> float:
        """Of a step, under the profiler, which slows it."""
        return sum(operator.seconds for operator in self.operators)

    def kinds(self) -> dict[Kind, float]:
        """Seconds of a step by kind of work."""
        found = dict.fromkeys(KINDS, 0.0)
        for operator in self.operators:
            found[operator.kind] += operator.seconds
        return found


@contextmanager
def visible_kernels() -> Iterator[None]:
    """What is compiled inside tells the profiler of each of its kernels, which it does not on a CPU by itself."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it speaks of a missing GPU otherwise
    import torch._inductor.config as inductor  # slow to import

    with inductor.patch({"cpp.enable_kernel_profile": True}):
        yield


def take_profile(side: str, timed: TimedSteps, device: torch.device) -> Profile:
    """Profiles some steps of what trains, which was built under `visible_kernels`."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    timed.take(1)
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            with record_function(SPAN):
                timed.take(1)
    rows = list(found.key_averages())
    operators = _on_gpu(rows) if cuda else [_operator(row, row.self_cpu_time_total, row.count) for row in rows]
    held = [operator for operator in operators if operator.seconds > 0]
    return Profile(side, device.type, tuple(sorted(held, key=lambda operator: -operator.seconds)))


def _on_gpu(rows: list[Any]) -> list[Operator]:
    """Kernels; those that batched products launched are of attention, which their names do not tell."""
    kernels, batched = [], []
    for row in rows:
        if row.device_type != torch.autograd.DeviceType.CUDA:
            batched += [_operator(row, row.self_device_time_total, row.count)] if row.key in BATCHED else []
        elif not getattr(row, "is_user_annotation", False) and row.key != SPAN and not row.key.startswith("Optimizer."):
            kernels.append(_operator(row, row.self_device_time_total, row.count))
    theirs = sum(operator.seconds for operator in batched)
    products = [operator for operator in kernels if operator.kind == "matrix products"]
    whole = sum(operator.seconds for operator in products)
    if not theirs or theirs > whole:
        return kernels
    rest = [
        Operator(held.name, held.kind, held.calls, held.seconds * (1 - theirs / whole)) if held in products else held
        for held in kernels
    ]
    return [*rest, *batched]


def _operator(row: Any, microseconds: float, count: int) -> Operator:
    return Operator(row.key, kind_of(row.key), count / STEPS, microseconds / 1e6 / STEPS)
