"""Random: hides a share of the cells, drawn uniformly. MAE (cells of 16 px) and SimMIM (32 px) both use it.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mim.maskers.base import Masker, Rounding, smallest, visible_cells
from mim.structures import ImageSpec


class Random(Masker, name="random"):
    """Hides a share `ratio` of the cells; every set of that size is equally likely.

    Args:
        ratio: share of hidden cells, between 0 and 1, both excluded. MAE section 3: 0.75; SimMIM section 3.2: 0.6.
        rounding: `floor_visible` keeps int(cells * (1 - ratio)) cells (MAE); `ceil_hidden` hides ceil(cells * ratio)
            cells (SimMIM); `floor_hidden` hides int(ratio * cells) cells (vit-pytorch).
    """

    def __init__(
        self, image: ImageSpec, *, ratio: float = 0.75, rounding: Rounding = "floor_visible", **shared: Any
    ) -> None:
        super().__init__(image, **shared)
        self.visible = visible_cells(self.cells, ratio, rounding)

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        noise_BL = torch.rand(batch, self.cells, generator=generator, device=device)
        return rearrange(~smallest(noise_BL, self.visible), "b (h w) -> b h w", h=self.grid[0])
