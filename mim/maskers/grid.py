"""Grid: the regular pattern that keeps one cell of four, or of n.

Shapes: B batch, H W cells high and wide.
"""

import math

import torch
from einops import repeat
from torch import Tensor

from mim.maskers.base import Masker
from mim.structures import ImageSpec


class Grid(Masker, name="grid"):
    """Keeps one cell of every `one_of`, in the same places of every image; nothing is drawn.

    `one_of` = p * q with p <= q as near to a square as it gets: one cell of each p x q rectangle. A prime has no
    rectangle and keeps diagonals, so that 2 is a checkerboard. Where the pattern does not tile the grid, its edges keep
    more; `ratio` tells the true share. Source: MAE figure 6 and table 1f (one of four).
    """

    def __init__(self, image: ImageSpec, *, cell: int = 16, one_of: int = 4):
        super().__init__(image, cell=cell)
        if not 2 <= one_of <= self.cells:
            raise ValueError(f"MASKER.one_of is {one_of}: it must lie between 2 and the {self.cells} cells")
        self.one_of = one_of
        # counted on the CPU also while a model is built without memory
        self.visible = int(self._kept(torch.device("cpu")).sum())

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return repeat(~self._kept(device), "h w -> b h w", b=batch)

    def _kept(self, device: torch.device) -> Tensor:
        high = max(side for side in range(1, math.isqrt(self.one_of) + 1) if self.one_of % side == 0)
        axes = (torch.arange(side, device=device) for side in self.grid)
        row, column = torch.meshgrid(*axes, indexing="ij")
        if high == 1:
            return (row + column) % self.one_of == 0
        return (row % high == 0) & (column % (self.one_of // high) == 0)
