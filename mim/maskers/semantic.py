"""Semantic: the attention of a teacher chooses what stays visible (MILAN).

Shapes: B batch, H W cells high and wide, L = H * W.
"""

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.maskers.base import smallest
from mim.maskers.random import Random
from mim.ops.seeding import scores
from mim.structures import PatchMask

OWN = 0x5DEECE6D  # flips bits of the draw: a head that decodes some hidden cells chooses them by the draw itself


class Semantic(Random, name="semantic"):
    """Cells stay visible at random, the likelier the more the class token of the teacher attends to them.

    They are drawn one after the other without replacement, each in proportion to its share of the attention in the
    teacher's last block, averaged over heads. Needs TARGET.name teacher with a class token. Where there is no image, as
    in reports on masks, every cell is equally likely.

    Source: MILAN (Hou et al., arXiv:2208.06049), section 3.3.
    """

    of_image: ClassVar[bool] = True

    def finish(self, mask: PatchMask, attention_BHW: Tensor) -> PatchMask:
        assert mask.draw_B is not None
        attention_B1HW = attention_BHW[:, None].double()
        if attention_BHW.shape[1:] != self.grid:
            attention_B1HW = F.interpolate(attention_B1HW, self.grid, mode="bilinear", antialias=True)
        share_BL = rearrange(attention_B1HW, "b 1 h w -> b (h w)")
        uniform_BL = (scores(mask.draw_B ^ OWN, self.cells).double() + 0.5) / 2**32
        # the first of exponential clocks with these rates rings in proportion to them, and so do the next
        wait_BL = -uniform_BL.log() / share_BL.clamp(min=torch.finfo(share_BL.dtype).tiny)
        visible_BL = smallest(wait_BL, self.visible)
        return replace(mask, hidden_BHW=rearrange(~visible_BL, "b (h w) -> b h w", h=self.grid[0]))
