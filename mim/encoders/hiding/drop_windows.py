"""Dropping in Swin and Swin V2: only the visible tokens are computed, and attend to each other inside each window.

Shapes: B batch, C channels, H W pixels, K visible cells, h w tokens high and wide, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from mim.encoders.hiding.base import Way
from mim.encoders.hiding.layout import Layout
from mim.encoders.hiding.stem import stem_of
from mim.encoders.visible_windows import accept_plans, map_of_visible, visible_stages
from mim.structures import Features, PatchMask


class DropWindows(Way):
    """Drops the hidden tokens of timm's SwinTransformer and SwinTransformerV2; a cell is one token of the last stage.

    Source: GreenMIM, arXiv:2205.13515.
    """

    hiding = "drop"

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        self.cell = layout.stride
        accept_plans(backbone)

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        if not isinstance(backbone, (SwinTransformer, SwinTransformerV2)):
            return "its layers need every token of the grid"
        if stem_of(backbone).module is not backbone.patch_embed:
            return "its patches overlap"
        grids: list[Any] = [stage.output_resolution for stage in backbone.layers]
        if any(side % 2 for grid in grids[:-1] for side in grid):
            return "a stage has an odd number of tokens, which patch merging pads"
        return ""

    def forward(
        self, backbone: Any, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        grid = self.layout.grid
        kept_BK = mask.kept_indices(*grid)
        outputs = list(visible_stages(backbone, img_BCHW, kept_BK, grid))
        features = self.layout.features(backbone.norm(outputs[-1]), kept_BK, mask.draw_B)
        return replace(features, stages_BDhw=tuple(map_of_visible(outputs[stage], kept_BK, grid) for stage in stages))
