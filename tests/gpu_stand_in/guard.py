"""Guarded steps: from the third on, PyTorch raises where the host would wait for the device within a step."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from values import plausible_reads

from mim.engine.optim.steady import Steady
from mim.engine.step_status import StepMonitor
from mim.engine.trainer import Trainer

WARM = 2  # steps, in which libraries and optimizers prepare themselves
KINDS = ("launches", "products", "copies")  # as fake_count of the stand-in numbers them
Counts = dict[str, int]
Around = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def guard_steps(around: Around = contextlib.nullcontext) -> Iterator[list[Counts]]:
    """Inside, steps of a Trainer are guarded, and none counts as not finite. Gives the counts of each guarded step.

    around: a context in which each guarded step is taken.
    """
    step, evaluate, look, steady_step = Trainer._train_step, Trainer._evaluate, StepMonitor.look, Steady.step
    counts: list[Counts] = []

    def step_under_guard(self: Trainer) -> None:
        if self.step - self.first < WARM:
            step(self)
            return
        before = launches()
        with no_host_sync(), around():
            step(self)
        counts.append({kind: count - before[kind] for kind, count in launches().items()})

    def evaluate_plausibly(self: Trainer) -> None:
        with plausible_reads():
            evaluate(self)

    def look_calmly(self: StepMonitor, drain: bool = False) -> list[Any]:
        calm = {"harmful": False, "end_requested": False, "save_due": False}
        return [replace(status, **calm) for status in look(self, drain)]

    def step_first(self: Steady, closure: Any = None) -> None:
        if not self.state:
            self.found_inf = None  # what memory held would skip the first step
        steady_step(self, closure)

    stubs = ((Trainer, "_train_step", step_under_guard), (Trainer, "_evaluate", evaluate_plausibly))
    stubs = (*stubs, (StepMonitor, "look", look_calmly), (Steady, "step", step_first))
    with contextlib.ExitStack() as stack:
        for owner, name, stub in stubs:
            stack.enter_context(mock.patch.object(owner, name, stub))
        yield counts


@contextlib.contextmanager
def no_host_sync() -> Iterator[None]:
    """Inside, PyTorch raises where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches() -> Counts:
    """Kernel launches, matrix products and copies so far, and launches of Triton's kernels."""
    runtime = library()
    counts = {kind: runtime.fake_count(number) for number, kind in enumerate(KINDS)}
    return {**counts, "triton": driver().fake_cu_count()}


def library() -> ctypes.CDLL:
    """The stand-in for CUDA's runtime."""
    runtime = ctypes.CDLL(os.environ["LD_PRELOAD"])
    runtime.fake_count.restype = ctypes.c_long
    return runtime


def driver() -> ctypes.CDLL:
    """The stand-in for CUDA's driver."""
    driver = ctypes.CDLL(os.path.join(os.path.dirname(os.environ["LD_PRELOAD"]), "libcuda.so.1"))
    driver.fake_cu_count.restype = ctypes.c_long
    return driver
