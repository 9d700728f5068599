"""Dropping in NaFlexVit.

Shapes: B batch, H heads, M kept patch tokens, N patch tokens, R channels of rotary positions.
"""

from typing import Any

from timm.models.naflexvit import NaFlexVit
from torch import Tensor

from mim.encoders.hiding.drop_at_blocks import DropAtBlocks
from mim.encoders.hiding.layout import Layout


class DropNaFlex(DropAtBlocks):
    """Drops hidden tokens of NaFlexVit, with rotary positions of all blocks or of each block, or with none.

    timm's own place where patches leave works in training alone, at random. Here patches have their positions on the
    whole grid before they leave, so the grid is never read from the coordinates of those that stay.
    """

    families = (NaFlexVit,)

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        backbone.patch_drop = None
        for block in backbone.blocks:
            block.register_forward_pre_hook(self._keep_positions, with_kwargs=True)

    def _keep_positions(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """A hook: the arguments of a block, with the positions of kept tokens alone while a mask is at work."""
        rotary = kwargs.get("rope")
        if self._kept_BM is None or rotary is None:
            return args, kwargs
        return args, {**kwargs, "rope": keep_rotary(rotary, self._kept_BM)}


def keep_rotary(rotary: Tensor, kept_BM: Tensor) -> Tensor:
    """Rotary positions, (N, R) or (H, N, R), of kept tokens: (B, 1, M, R) or (B, H, M, R)."""
    rotary_HNR = rotary if rotary.ndim == 3 else rotary[None]
    return rotary_HNR[:, kept_BM].movedim(1, 0)
