"""Dropping in transformers of one width, where timm itself has a place at which patch tokens leave (`patch_drop`).

Shapes: B batch, C channels, H W pixels, N tokens, K prefix tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim.encoders.hiding.base import NEEDS_GRID, Way, keep_tokens, map_of_kept, outputs_of, without_hidden_pixels
from mim.encoders.hiding.layout import Layout
from mim.structures import Features, PatchMask


class KeptTokens(nn.Module):
    """Stands where timm drops patch tokens at random. It keeps the patch tokens `kept_BN`, or all where that is None.

    Args:
        num_prefix: tokens ahead of the patch tokens; they stay.
        with_indices: whether timm reads the indices too, for rotary positions.
    """

    def __init__(self, num_prefix: int, with_indices: bool):
        super().__init__()
        self.num_prefix, self.with_indices = num_prefix, with_indices
        self.kept_BN: Tensor | None = None

    def forward(self, tokens_BND: Tensor) -> Any:
        kept_BN = self.kept_BN
        if kept_BN is not None:
            tokens_BND = keep_tokens(tokens_BND, kept_BN, self.num_prefix)
        return (tokens_BND, kept_BN) if self.with_indices else tokens_BND


class DropTokens(Way):
    """Drops the hidden tokens of timm's VisionTransformer and Eva, with registers and any kind of positions.

    Rotary positions are gathered with the tokens, which timm's Eva does itself for the indices that it is given. Where
    patches overlap, hidden pixels are 0 before the stem.
    """

    hiding = "drop"

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        self.cell = layout.stride
        backbone.patch_drop = KeptTokens(layout.num_prefix, isinstance(backbone, Eva))

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        if not isinstance(backbone, (VisionTransformer, Eva)):
            return NEEDS_GRID
        return ""

    def forward(
        self, backbone: Any, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        layout, door, numbers = self.layout, backbone.patch_drop, sorted(set(stages))
        door.kept_BN = kept_BN = mask.kept_indices(*layout.grid)
        try:
            with outputs_of([backbone.blocks[number] for number in numbers]) as outputs:
                tokens_BND = backbone.forward_features(without_hidden_pixels(img_BCHW, mask))
        finally:
            door.kept_BN = None
        maps = [map_of_kept(output[:, layout.num_prefix :], kept_BN, layout.grid) for output in outputs]
        features = layout.features(tokens_BND, kept_BN, mask.draw_B)
        return replace(features, stages_BDhw=tuple(maps[numbers.index(stage)] for stage in stages))
