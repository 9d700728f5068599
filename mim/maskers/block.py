"""Block: BEiT's rectangles, brought to an exact count.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.maskers.base import Masker, Rounding, smallest, visible_cells
from mim.structures import ImageSpec

ROUNDS = 24  # rectangles proposed for each sample; one that would hide nothing new, or too much, is passed over


class Block(Masker, name="block"):
    """Hides rectangles until a share `ratio` of the cells is hidden.

    min_cells: smallest area of a rectangle, in cells (no more than what is left to hide); max_aspect: the aspect is
    drawn log-uniformly between 1 / max_aspect and max_aspect.

    Source: BEiT algorithm 1, masking_generator.py (14 x 14 cells, ratio .4, min_cells 16, aspect from .3); MAE
    table 1f. Differs from: all samples of a batch are drawn together on the device, and what the rectangles leave
    to hide goes to the visible cells with the most hidden neighbours, so that every sample hides the same number
    and a dropping encoder can take them.
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        cell: int = 16,
        ratio: float = 0.4,
        rounding: Rounding = "floor_visible",
        min_cells: int = 16,
        max_aspect: float = 1 / 0.3,
    ):
        super().__init__(image, cell=cell)
        self.visible = visible_cells(self.cells, ratio, rounding)
        if min_cells < 1:
            raise ValueError(f"MASKER.min_cells is {min_cells}: it must be at least 1")
        if max_aspect < 1:
            raise ValueError(f"MASKER.max_aspect is {max_aspect}: it must be at least 1")
        self.min_cells, self.max_aspect = min_cells, max_aspect

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        hidden_BHW = torch.zeros(batch, *self.grid, dtype=torch.bool, device=device)
        wanted = self.cells - self.visible
        for _ in range(ROUNDS):
            missing_B = wanted - hidden_BHW.sum(dim=(1, 2))
            block_BHW = self._rectangles(uniform(4, batch), missing_B)
            new_B = (block_BHW & ~hidden_BHW).sum(dim=(1, 2))
            taken_B = (new_B > 0) & (new_B <= missing_B)
            hidden_BHW = hidden_BHW | (block_BHW & taken_B[:, None, None])
        missing_B1 = wanted - hidden_BHW.sum(dim=(1, 2))[:, None]
        crowding_BHW = F.avg_pool2d(F.pad(hidden_BHW.float(), (1, 1, 1, 1)), 3, stride=1)
        noise_BHW = uniform(batch, *self.grid) / 18  # less than one neighbour's ninth
        score_BHW = noise_BHW - crowding_BHW + 2.0 * hidden_BHW
        filled_BL = smallest(rearrange(score_BHW, "b h w -> b (h w)"), missing_B1)
        return hidden_BHW | rearrange(filled_BL, "b (h w) -> b h w", h=self.grid[0])

    def _rectangles(self, chance_4B: Tensor, missing_B: Tensor) -> Tensor:
        """One rectangle for each sample, (B, H, W) bool; `chance_4B` is uniform in [0, 1)."""
        height, width = self.grid
        least_B = missing_B.clamp(max=self.min_cells).float()
        area_B = least_B + chance_4B[0] * (missing_B - least_B)
        aspect_B = torch.exp((2 * chance_4B[1] - 1) * math.log(self.max_aspect))
        high_B = (area_B * aspect_B).sqrt().round().clamp(1, height)
        wide_B = (area_B / aspect_B).sqrt().round().clamp(1, width)
        top_B = (chance_4B[2] * (height - high_B + 1)).floor()
        left_B = (chance_4B[3] * (width - wide_B + 1)).floor()
        row_H = torch.arange(height, device=chance_4B.device)
        column_W = torch.arange(width, device=chance_4B.device)
        rows_BH = (row_H >= top_B[:, None]) & (row_H < (top_B + high_B)[:, None])
        columns_BW = (column_W >= left_B[:, None]) & (column_W < (left_B + wide_B)[:, None])
        return rows_BH[:, :, None] & columns_BW[:, None, :]
