"""Hardware: what a plan for many devices assumes, and the time of collectives that follows.

Source: ring collectives, Patarasuk and Yuan 2009.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from mim.registry import one_of

GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Assumptions about the machines. The defaults are an H100's published peak and memory, and round numbers for a
    network of one 400 Gb/s adapter per node.
    """

    peak_tflops: float = 989.0  # TFLOP/s of a device in the precision of the products, by its maker
    mfu: float = 0.4  # share of the peak that forward and backward pass reach, at any micro-batch
    memory_gb_s: float = 3350.0  # GB/s of a device's memory, at which weights are updated
    node: float = 8  # devices of a node
    node_gb_s: float = 300.0  # GB/s that each device sends in a collective inside a node (busbw in nccl-tests)
    network_gb_s: float = 50.0  # GB/s that each device sends in a collective across nodes
    node_us: float = 2.0  # microseconds from one device to the next inside a node
    network_us: float = 8.0  # microseconds from one node to the next
    disk_gb_s: float = 1.0  # GB/s at which a checkpoint is written

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--assume {field.name}={value:g}: it must be positive")

    @classmethod
    def read(cls, words: Sequence[str]) -> "Hardware":
        """From words such as `mfu=0.5`. Raises ValueError for an unknown name or a value that is not a number."""
        names = [field.name for field in fields(cls)]
        values: dict[str, float] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in names:
                raise ValueError(f"--assume {word}: {one_of(name, names)}")
            try:
                values[name] = float(text)
            except ValueError:
                raise ValueError(f"--assume {word}: a number must follow the sign =, as in mfu=0.5") from None
        return cls(**values)

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


def sent(payload: float, devices: int) -> float:
    """Bytes that each device sends in a ring all-gather or reduce-scatter. An all-reduce is one of each."""
    return payload * (devices - 1) / devices
