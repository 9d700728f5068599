"""Random: hides a share of the cells, drawn uniformly. MAE (cells of 16 px) and SimMIM (32 px) both use it.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import torch
from einops import rearrange
from torch import Tensor

from mim.maskers.base import RatioMasker, smallest


class Random(RatioMasker, name="random"):
    """Hides a share `ratio` of the cells; every set of that size is equally likely.

    Source: MAE section 3, ratio 0.75; SimMIM section 3.2, ratio 0.6.
    """

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        noise_BL = torch.rand(batch, self.cells, generator=generator, device=device)
        return rearrange(~smallest(noise_BL, self.visible), "b (h w) -> b h w", h=self.grid[0])
