"""Hardware: what a plan for GPUs that are not here assumes, and the time of collectives that follows.

Source: ring collectives, Patarasuk and Yuan 2009.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from mim.engine.precision import Precision
from mim.lab.plan.gpus import DEFAULT, GPUS, Gpu, gpu_named
from mim.registry import one_of

GIGA = 1e9
LINK_SHARE = 2 / 3  # of the link's data sheet, that a collective reaches
H100 = GPUS[DEFAULT]
OURS = "assumed: a round number of ours"
MEANINGS = {  # of each figure, with its unit
    "peak_tflops": "TFLOP/s of a device's matrix products, dense",
    "mfu": "share of the peak that forward and backward pass reach, at any micro-batch",
    "memory_gb_s": "GB/s of a device's memory, at which weights are updated",
    "node": "devices of a node",
    "node_gb_s": "GB/s that a device sends in a collective inside a node (busbw)",
    "network_gb_s": "GB/s that a device sends in a collective across nodes (busbw)",
    "node_us": "microseconds from a device to the next inside a node",
    "network_us": "microseconds from a node to the next",
    "disk_gb_s": "GB/s at which a checkpoint is written",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Assumptions about the machines, as MEANINGS says.

    The defaults are those of an H100 in bf16, and round numbers for a network of one 400 Gb/s adapter per node.
    """

    peak_tflops: float = H100.bf16 or 0.0
    mfu: float = 0.4
    memory_gb_s: float = H100.memory_gb_s
    node: float = 8
    node_gb_s: float = round(LINK_SHARE * H100.link_gb_s, 1)
    network_gb_s: float = 50.0
    node_us: float = 2.0
    network_us: float = 8.0
    disk_gb_s: float = 1.0
    gpu: str = ""  # the name of the GPU that is assumed
    sources: Mapping[str, str] = field(default_factory=dict)  # where each figure comes from

    def __post_init__(self) -> None:
        for name in MEANINGS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--assume {name}={value:g}: it must be positive")

    def ring_s(self, payload: float, devices: int) -> float:
        """Seconds of a ring all-gather or reduce-scatter of this many bytes, padding included."""
        if devices == 1:
            return 0.0
        nodes = math.ceil(devices / self.node)
        speed = self.node_gb_s if nodes == 1 else self.network_gb_s
        hops_us = (devices - nodes) * self.node_us + (nodes * self.network_us if nodes > 1 else 0.0)
        return sent(payload, devices) / (GIGA * speed) + hops_us / 1e6

    def all_reduce_s(self, payload: float, devices: int) -> float:
        """Seconds of an all-reduce: the bytes of two rings, and the hops of a tree, as NCCL does it."""
        nodes = math.ceil(devices / self.node)
        inside = math.ceil(math.log2(min(devices, self.node)))
        hops_us = 2 * (inside * self.node_us + math.ceil(math.log2(nodes)) * self.network_us)
        speed = self.node_gb_s if nodes == 1 else self.network_gb_s
        return 2 * sent(payload, devices) / (GIGA * speed) + hops_us / 1e6

    def copies_s(self, payload: float, copies: int, shards: int) -> float:
        """Seconds in which as many all-reduces as a copy has shards, one of each shard, run at the same time.

        payload: bytes of all shards together. The all-reduces of a node share its adapter.
        """
        if copies == 1:
            return 0.0
        inside = copies * shards <= self.node
        at_once, speed = (1, self.node_gb_s) if inside else (min(shards, self.node), self.network_gb_s)
        hops_us = 2 * math.ceil(math.log2(copies)) * (self.node_us if inside else self.network_us)
        return 2 * sent(at_once * payload / shards, copies) / (GIGA * speed) + hops_us / 1e6


@dataclass(frozen=True, slots=True)
class HardwareChoice:
    """What a user says of GPUs that are not here."""

    gpu: Gpu
    figures: dict[str, float]  # by name, instead of those of the GPU and of ours

    @classmethod
    def read(cls, gpu: str = "", words: Sequence[str] = ()) -> "HardwareChoice":
        """From the name of a GPU, by default an H100, and from words such as `mfu=0.5`.

        Raises ValueError for an unknown name, and for a value that is no positive number.
        """
        figures: dict[str, float] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in MEANINGS:
                raise ValueError(f"--assume {word}: {one_of(name, MEANINGS)}")
            try:
                figures[name] = float(text)
            except ValueError:
                raise ValueError(f"--assume {word}: a number must follow the sign =, as in mfu=0.5") from None
        Hardware(**figures)  # type: ignore[arg-type]  # refuses what is not positive
        return cls(gpu_named(gpu or DEFAULT), figures)

    def precision(self, precision: str) -> Precision:
        """A value of TRAIN.precision with `auto` resolved for this GPU.

        Raises ValueError where the GPU has no unit for it, and the user gives no peak either.
        """
        resolved: Precision = precision if precision in get_args(Precision) else self.gpu.auto_precision  # type: ignore[assignment]
        if self.gpu.peak_tflops(resolved) is None and "peak_tflops" not in self.figures:
            raise ValueError(
                f"TRAIN.precision is {resolved}, and the {self.gpu.title} only emulates such products: set "
                "TRAIN.precision fp16 or fp32, or say what it reaches with --assume peak_tflops=N"
            )
        return resolved

    def hardware(self, precision: str) -> Hardware:
        """The figures for a value of TRAIN.precision, each with its source. Raises ValueError as `precision` does."""
        gpu, resolved = self.gpu, self.precision(precision)
        sheet = f"assumed: {gpu.source}"
        figures: dict[str, float] = {"memory_gb_s": gpu.memory_gb_s, "node_gb_s": round(LINK_SHARE * gpu.link_gb_s, 1)}
        peak = gpu.peak_tflops(resolved)
        figures |= {} if peak is None else {"peak_tflops": peak}
        sources = dict.fromkeys(MEANINGS, OURS) | {"memory_gb_s": sheet, "peak_tflops": f"{sheet}, {resolved}"}
        sources["node_gb_s"] = f"assumed: two thirds of {gpu.link_gb_s:g} GB/s of {gpu.link}"
        sources |= dict.fromkeys(self.figures, "assumed: --assume")
        return Hardware(**{**figures, **self.figures}, gpu=gpu.title, sources=sources)


def sent(payload: float, devices: int) -> float:
    """Bytes that each device sends in a ring all-gather or reduce-scatter. An all-reduce is one of each."""
    return payload * (devices - 1) / devices
