"""What a run costs: recomputed activations, deterministic kernels, and the memory that was needed."""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils import deterministic as memory
from torch.utils.checkpoint import checkpoint

from mim.engine.precision import autocast
from mim.engine.settings import TrainSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
KEPT = 2**25  # bytes: larger blocks, the most that glibc allows, are always handed out anew


def recompute_activations(blocks: list[nn.Module]) -> None:
    """Each block forgets its activations and computes them again in the backward pass."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@contextmanager
def inference(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Inside, a model predicts as the run's own evaluations did: its precision and kernels, without gradients."""
    deterministic = deterministic_kernels(settings.is_deterministic(device))
    with torch.no_grad(), autocast(settings.precision, device), deterministic:
        yield


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Inside, kernels whose result varies from run to run are refused.

    PyTorch would then also fill every new tensor with NaN; kernels here write all that they return, so that is off.
    """
    before = torch.are_deterministic_algorithms_enabled()
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def cast_once(device: torch.device) -> Iterator[None]:
    """Inside, autocast keeps the weights that it has cast from one micro-batch to the next; they must not change."""
    before = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, torch.bfloat16):  # its cache lives as long as the outermost autocast
        torch.set_autocast_enabled(device.type, before)
        yield


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Inside, glibc keeps the memory that a training step on a CPU frees, for the next step to take.

    Otherwise large blocks go back to the system, which hands them out again page by page, each filled with zeros. Other
    allocators and systems are left alone.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt if device.type == "cpu" else None
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        adjust = None
    if adjust is not None:
        adjust(M_MMAP_THRESHOLD, KEPT)
        adjust(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        if adjust is not None:
            adjust(M_TRIM_THRESHOLD, 2 * KEPT)  # as glibc itself moves it


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what tensors took at most, on a CPU what the whole process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
