"""Ceiling: the fastest matrix product that this machine was seen to make, against which a training step is held."""

import time
from dataclasses import dataclass

import torch

SMALLEST, LARGEST = 1024, 16384  # sides of the square matrices that are tried
LONGEST_S = 0.1  # that one product may take
DRAWN = 64  # columns of noise, which are repeated
TIMES = 5  # products at a time


@dataclass(frozen=True, slots=True)
class Product:
    """The best product so far. side: of its square matrices; flops: operations a second, a multiply-add as two."""

    side: int
    flops: float


class Ceiling:
    """Products of square matrices in the type of a run's products, on its device.

    The first measurement looks for the side that is fastest; later ones stay with it and keep the best.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.best = Product(0, 0.0)

    def measure(self) -> None:
        """Takes some products now."""
        if self.best.side:
            self._take(self.best.side)
            return
        side = SMALLEST
        while side <= LARGEST and self._take(side) * 8 <= LONGEST_S:
            side *= 2

    def _take(self, side: int) -> float:
        """The seconds of one product, the fastest of several."""
        drawn = torch.randn(2, side, DRAWN, dtype=self.dtype, device=self.device)
        left, right = (part.repeat(1, side // DRAWN) for part in drawn)
        out = torch.mm(left, right)  # which also loads the kernel
        seconds = min(self._seconds(left, right, out) for _ in range(TIMES))
        flops = 2 * side**3 / seconds
        if flops > self.best.flops:
            self.best = Product(side, flops)
        return seconds

    def _seconds(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(TIMES):  # one alone might wait for the host
            torch.mm(left, right, out=out)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / TIMES


def utilisation(flops_a_step: int | None, seconds: float, ceiling: Product) -> float | None:
    """The share of the ceiling that a step reaches (MFU): what its model needs, by how long it took, by the ceiling.

    Operations that are done again (activation checkpointing) do not count. None where they are not known.
    """
    return None if flops_a_step is None else flops_a_step / seconds / ceiling.flops
