"""Random: a share of the cells, drawn uniformly. MAE and SimMIM both are this, with cells of 16 and of 32 px.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import torch
from einops import rearrange
from torch import Tensor

from mim.maskers.base import Masker, Rounding, smallest, visible_cells
from mim.structures import ImageSpec


class Random(Masker, name="random"):
    """Hides a share `ratio` of the cells, each set of that size equally likely.

    Source: MAE section 3 (cell 16, ratio .75, rounding floor_visible); SimMIM section 3.2 (cell 32, ratio .6,
    rounding ceil_hidden).
    """

    def __init__(self, image: ImageSpec, *, cell: int = 16, ratio: float = 0.75, rounding: Rounding = "floor_visible"):
        super().__init__(image, cell=cell)
        self.visible = visible_cells(self.cells, ratio, rounding)

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        noise_BL = torch.rand(batch, self.cells, generator=generator, device=device)
        return rearrange(~smallest(noise_BL, self.visible), "b (h w) -> b h w", h=self.grid[0])
