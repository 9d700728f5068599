"""Grid: a regular pattern that keeps one cell of every n.

Shapes: B batch, H W cells high and wide.
"""

import math
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from mim.maskers.base import Masker
from mim.structures import ImageSpec


class Grid(Masker, name="grid"):
    """Keeps the same cells in every image: one of each p x q rectangle, where p * q = `one_of`; nothing is random.

    Where the rectangles do not tile the grid, the edges keep more cells; `ratio` gives the real share.

    Args:
        one_of: cells for each visible one, from 2 to the number of cells. The rectangle is as near to a square as
            possible; a prime number keeps diagonals instead, so that 2 is a checkerboard. MAE figure 6 and table 1f: 4.
    """

    def __init__(self, image: ImageSpec, *, one_of: int = 4, **shared: Any) -> None:
        super().__init__(image, **shared)
        if not 2 <= one_of <= self.cells:
            raise ValueError(f"MASKER.one_of is {one_of}: it must lie between 2 and the {self.cells} cells")
        self.one_of = one_of
        # counted on the CPU, because the model may be built on the meta device
        self.visible = int(self._visible(torch.device("cpu")).sum())

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return repeat(~self._visible(device), "h w -> b h w", b=batch)

    def _visible(self, device: torch.device) -> Tensor:
        high = max(side for side in range(1, math.isqrt(self.one_of) + 1) if self.one_of % side == 0)
        axes = (torch.arange(side, device=device) for side in self.grid)
        row_HW, column_HW = torch.meshgrid(*axes, indexing="ij")
        if high == 1:
            return (row_HW + column_HW) % self.one_of == 0
        return (row_HW % high == 0) & (column_HW % (self.one_of // high) == 0)
