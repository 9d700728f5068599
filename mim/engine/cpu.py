"""This CPU: its name, the cores that this process may use, and its instruction sets."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
SPEED_FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")


def describe_cpu() -> dict[str, str | int | list[str]]:
    """Name, cores, and the instruction sets that the speed of a training step depends on."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    flags = cpu_flags()
    return {"name": cpu_name(), "cores": cores, "flags": [flag for flag in SPEED_FLAGS if flag in flags]}


def cpu_name() -> str:
    """The model, as Linux names it; elsewhere the processor or the architecture."""
    return next(iter(_cpu_info("model name")), "") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The instruction sets by name: as PyTorch reports them, or as Linux does where PyTorch is too old for that."""
    if hasattr(torch.cpu, "get_capabilities"):
        return frozenset(name for name, value in torch.cpu.get_capabilities().items() if value is True)
    return frozenset(word for line in _cpu_info("flags", "Features") for word in line.split())


def _cpu_info(*fields: str) -> list[str]:
    """The values of some fields of /proc/cpuinfo; none where there is no such file."""
    lines: list[str] = []
    with suppress(OSError):
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.partition(":") for line in lines]
    return [value.strip() for name, _, value in parts if name.strip() in fields]
