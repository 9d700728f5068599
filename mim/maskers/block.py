"""Block: BEiT's rectangles, brought to an exact number of hidden cells.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.io.checks import at_least
from mim.maskers.base import RatioMasker, rectangles, smallest
from mim.structures import ImageSpec

TRIES = 10  # rectangles proposed in a row that do not fit, after which no more are tried, as in BEiT
PROPOSALS = 48  # rectangles proposed for each sample in all


class Block(RatioMasker, name="block"):
    """Hides rectangles until a share `ratio` of the cells is hidden.

    The area of a rectangle is drawn between `min_cells` and the number of cells that are to be hidden yet. One that is
    as high or wide as the grid, hides no new cell, or too many, is drawn again.

    Source: BEiT algorithm 1, masking_generator.py (14 x 14 cells, ratio 0.4); MAE table 1f. Differs from: the device
    draws all samples of a batch together; where the rectangles hide too little, the visible cells with the most hidden
    neighbours are hidden too, so that every sample hides the same number. So an encoder can drop them.

    Args:
        min_cells: smallest area of a rectangle in cells, at least 1. BEiT: 16.
        max_aspect: largest height / width, at least 1; the ratio is drawn log-uniformly from 1 / max_aspect to
            max_aspect. BEiT: 1 / 0.3.
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        ratio: float = 0.4,
        min_cells: int = 16,
        max_aspect: float = 1 / 0.3,
        **shared: Any,
    ) -> None:
        super().__init__(image, ratio=ratio, **shared)
        at_least("MASKER", 1, min_cells=min_cells, max_aspect=max_aspect)
        self.min_cells, self.max_aspect = min_cells, max_aspect

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        hidden_BHW = torch.zeros(batch, *self.grid, dtype=torch.bool, device=device)
        tries_B = torch.zeros(batch, dtype=torch.long, device=device)
        count = self.cells - self.visible
        for _ in range(PROPOSALS):
            missing_B = count - hidden_BHW.sum(dim=(1, 2))
            block_BHW, inside_B = self._rectangles(uniform(4, batch), missing_B)
            new_B = (block_BHW & ~hidden_BHW).sum(dim=(1, 2))
            accepted_B = inside_B & (new_B > 0) & (new_B <= missing_B) & (tries_B < TRIES)
            hidden_BHW = hidden_BHW | (block_BHW & accepted_B[:, None, None])
            tries_B = torch.where(accepted_B, 0, tries_B + 1)
        missing_B1 = count - hidden_BHW.sum(dim=(1, 2))[:, None]
        neighbours_BHW = F.avg_pool2d(F.pad(hidden_BHW.float(), (1, 1, 1, 1)), 3, stride=1)
        noise_BHW = uniform(batch, *self.grid) / 18  # less than one neighbour's ninth
        score_BHW = noise_BHW - neighbours_BHW + 2.0 * hidden_BHW
        added_BL = smallest(rearrange(score_BHW, "b h w -> b (h w)"), missing_B1)
        return hidden_BHW | rearrange(added_BL, "b (h w) -> b h w", h=self.grid[0])

    def _rectangles(self, uniform_4B: Tensor, missing_B: Tensor) -> tuple[Tensor, Tensor]:
        """A rectangle for each sample, (B, H, W) bool, from uniform numbers in [0, 1); and which are smaller than the
        grid in height and in width.
        """
        height, width = self.grid
        area_B = self.min_cells + uniform_4B[0] * (missing_B - self.min_cells)
        aspect_B = torch.exp((2 * uniform_4B[1] - 1) * math.log(self.max_aspect))
        high_B = (area_B * aspect_B).sqrt().round().clamp(min=1)
        wide_B = (area_B / aspect_B).sqrt().round().clamp(min=1)
        block_BHW = rectangles(high_B, wide_B, uniform_4B[2:], self.grid)
        return block_BHW, (high_B < height) & (wide_B < width)
