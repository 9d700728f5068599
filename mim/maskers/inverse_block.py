"""InverseBlock: square blocks stay visible (data2vec 2.0).

Shapes: B batch, H W cells high and wide, L = H * W.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.io.checks import at_least
from mim.maskers.base import RatioMasker, smallest
from mim.structures import ImageSpec


class InverseBlock(RatioMasker, name="inverse_block"):
    """Keeps squares of `block` x `block` cells visible, which may overlap and be cut off by the border of the image.

    Their number is int(cells * (1 - ratio + adjust) / block ** 2), at least 1. Then single cells are hidden, or made
    visible, at random until every sample has its number of visible cells.

    Source: data2vec 2.0 (Baevski et al., arXiv:2212.07525), compute_block_mask_2d with inverse_mask: ViT-B and L have
    ratio 0.8, blocks of 3 and adjust 0.07.

    Args:
        block: side of a block in cells, at least 1.
        adjust: share of the cells that blocks cover beyond those that stay visible, because blocks overlap; at least 0.
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        ratio: float = 0.8,
        block: int = 3,
        adjust: float = 0.07,
        **shared: Any,
    ) -> None:
        super().__init__(image, ratio=ratio, **shared)
        at_least("MASKER", 1, block=block)
        at_least("MASKER", 0, adjust=adjust)
        self.block = block
        self.blocks = max(1, int(self.cells * (1 - ratio + adjust) / block**2))

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        high, wide = self.grid
        centres_BK = torch.randint(self.cells, (batch, self.blocks), generator=generator, device=device)
        centred_BL = torch.zeros(batch, self.cells, device=device).scatter_(1, centres_BK, 1.0)
        after = self.block // 2  # a block reaches so far up and left from its centre; pooling looks the other way
        before = self.block - 1 - after
        padded_B1HW = F.pad(centred_BL.view(batch, 1, high, wide), (before, after, before, after))
        covered_BL = rearrange(F.max_pool2d(padded_B1HW, self.block, stride=1), "b 1 h w -> b (h w)")
        noise_BL = torch.rand(batch, self.cells, generator=generator, device=device)
        visible_BL = smallest(noise_BL - covered_BL, self.visible)
        return rearrange(~visible_BL, "b (h w) -> b h w", h=high)
