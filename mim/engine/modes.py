"""Modes of computing: inference, deterministic kernels, recomputed activations, kept memory."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils import deterministic as memory
from torch.utils.checkpoint import checkpoint

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from mim.engine.precision import autocast
from mim.engine.settings import TrainSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
LARGEST_KEPT = 2**25  # bytes, the most that glibc allows: larger blocks always come from the system
_NO_STATISTICS = {"momentum": 0.0, "num_batches_tracked": None}  # of a batch normalisation that keeps its running ones


def recompute_activations(blocks: list[nn.Module]) -> None:
    """Each block drops its activations and computes them again in the backward pass.

    Batch normalisation counts each batch once: its running statistics stay as they are the second time. A module whose
    output depends on a value beside its inputs, such as a mask, says so by an attribute `reads`: an object and the name
    of its attribute. The second time that attribute has the value of the first time.
    """
    for block in blocks:
        norms = [norm for norm in block.modules() if isinstance(norm, BatchNorm) and norm.track_running_stats]
        reads: list[Any] = [module.reads for module in block.modules() if hasattr(module, "reads")]
        run = partial(checkpoint, block.forward)
        if norms or reads:
            run = partial(_run_twice, block.forward, norms, list(dict.fromkeys(reads)))
        block.forward = partial(run, use_reentrant=False)


def _run_twice(
    forward: Callable[..., Any], norms: Sequence[Any], reads: Sequence[tuple[Any, str]], *inputs: Any, **keys: Any
) -> Any:
    if any(isinstance(each, list) for each in inputs):  # of maps, which a block or its caller may change
        forward, inputs = partial(_run_with_copies, forward), _copied(inputs)
    if torch.compiler.is_compiling():  # a graph holds each change of a statistic once
        return checkpoint(forward, *inputs, **keys)
    return checkpoint(forward, *inputs, context_fn=lambda: (nullcontext(), _SecondTime(norms, reads)), **keys)


def _run_with_copies(forward: Callable[..., Any], *inputs: Any, **keys: Any) -> Any:
    return forward(*_copied(inputs), **keys)


def _copied(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs, each list as a list of its own."""
    return tuple(list(each) if isinstance(each, list) else each for each in inputs)


class _SecondTime:
    """Inside, modules read the values that they read when this was made, and batch normalisation uses the statistics of
    the batch and does not add them to the running ones. Each backward pass through the same graph enters it.
    """

    def __init__(self, norms: Sequence[Any], reads: Sequence[tuple[Any, str]]):
        self._values = [(owner, name, getattr(owner, name)) for owner, name in reads]
        self._values += [(norm, name, value) for norm in norms for name, value in _NO_STATISTICS.items()]
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in self._values]
        for owner, name, value in self._values:
            setattr(owner, name, value)

    def __exit__(self, *error: Any) -> None:
        for owner, name, value in self._before:
            setattr(owner, name, value)


@contextmanager
def inference(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Inside, a model predicts as in the run's own evaluations: its precision and kernels, without gradients."""
    deterministic = deterministic_kernels(settings.is_deterministic(device))
    with torch.no_grad(), autocast(settings.precision, device), deterministic:
        yield


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Inside, PyTorch refuses kernels with results that vary from run to run.

    It would then also fill each new tensor with NaN. This is off, because kernels here write all that they return.
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def cast_once(device: torch.device) -> Iterator[None]:
    """Inside, autocast keeps each weight that it has cast for the next micro-batch. The weights must not change."""
    before = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, torch.bfloat16):  # the cache lives as long as the outermost autocast
        torch.set_autocast_enabled(device.type, before)
        yield


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Inside, glibc keeps the memory that a training step on a CPU frees, for the next step.

    Otherwise it returns large blocks to the system, which fills each page with zeros before it hands them out again.
    Has no effect on other systems and allocators.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt if device.type == "cpu" else None
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        adjust = None
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, LARGEST_KEPT)
        adjust(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        if adjust is not None:
            adjust(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)  # the value that glibc itself would choose


def peak_memory(device: torch.device) -> int | None:
    """The most bytes so far: of tensors on a GPU, of the process on a CPU; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
