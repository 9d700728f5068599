"""Ceiling: the fastest matrix product measured on this machine, and the share of it that a training step reaches."""

from dataclasses import dataclass

import torch

from mim.lab.dryrun.measure import PhaseClock

SMALLEST, LARGEST = 1024, 16384  # rows of the square matrices that are tried
MAX_SECONDS = 0.1  # of one product
NOISE = 64  # columns of random numbers, which are repeated
REPEATS = 5  # products per measurement


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """The fastest product so far."""

    side: int  # rows of its square matrices
    flops: float  # operations per second; a multiply-add counts as two


class Ceiling:
    """Measures products of square matrices on a device, in the type of a run's products.

    The first measurement looks for the fastest size. Later ones repeat that size, and keep the best.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.best, self.clock = MatrixProduct(0, 0.0), PhaseClock(device)

    def measure(self) -> None:
        """Times some products."""
        if self.best.side:
            self._take(self.best.side)
            return
        side = SMALLEST
        while side <= LARGEST and self._take(side) * 8 <= MAX_SECONDS:
            side *= 2

    def _take(self, side: int) -> float:
        """Seconds of one product, the fastest of several."""
        noise = torch.randn(2, side, NOISE, dtype=self.dtype, device=self.device)
        left, right = (part.repeat(1, side // NOISE) for part in noise)
        out = torch.mm(left, right)  # also loads the kernel
        products = REPEATS if self.device.type == "cuda" else 1  # on a GPU, a single one could wait for the host
        for _ in range(REPEATS):
            self.clock.on_phase("forward")
            for _ in range(products):
                torch.mm(left, right, out=out)
            self.clock.on_phase("end")
        seconds = min(step["forward"] for step in self.clock.read()) / products
        flops = 2 * side**3 / seconds
        if flops > self.best.flops:
            self.best = MatrixProduct(side, flops)
        return seconds
