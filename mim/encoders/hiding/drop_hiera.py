"""Dropping in Hiera: whole mask units leave, so that nothing joins a visible place with a hidden one.

Shapes: B batch, C channels, H W pixels, h w high and wide, U mask units, M kept mask units, N tokens, D width.
"""

import math
from collections.abc import Sequence
from typing import Any

from einops import rearrange
from timm.models.hiera import Hiera
from torch import Tensor, nn

from mim.encoders.hiding.base import NEEDS_GRID, Way, keep_tokens, map_of_kept, outputs_of, without_hidden_pixels
from mim.encoders.hiding.layout import Layout
from mim.structures import Features, PatchMask


class DropHiera(Way):
    """Drops the hidden mask units of Hiera, each of which becomes one token of the last map, or a few of them.

    Its patches overlap, so hidden pixels are 0 before the stem.

    Source: facebookresearch/hiera, hiera/hiera.py. Differs: the kept units are gathered by their indices, so that no
    shape depends on the values of a mask.
    """

    hiding = "drop"

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        self.cell = backbone.patch_stride[0] * backbone.mask_unit_size[0]
        self.units = tuple(backbone.mask_spatial_shape)
        self._kept_BM: Tensor | None = None
        backbone.blocks[0].register_forward_pre_hook(self._keep_units)

    @classmethod
    def objection(cls, backbone: Any) -> str:
        if not isinstance(backbone, Hiera):
            return NEEDS_GRID
        high, wide = backbone.mask_unit_size
        unrolled = [stride ** (len(backbone.stage_ends) - 1) for stride in backbone.q_stride]
        if [high, wide] != unrolled or high != wide:
            merged = f"{unrolled[0]}x{unrolled[1]}"
            return f"its mask units of {high}x{wide} patches are not the {merged} that it puts together"
        return ""

    def forward(
        self, backbone: Any, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        last = len(backbone.stage_ends) - 1
        numbers = sorted({*stages, last})
        ends = [backbone.stage_ends[number] for number in numbers]
        self._kept_BM = kept_BM = mask.kept_indices(*self.units)
        try:
            with outputs_of([backbone.blocks[end] for end in ends]) as outputs:
                backbone.forward_features(without_hidden_pixels(img_BCHW, mask))
        finally:
            self._kept_BM = None
        maps = [self._map(backbone, output, end, kept_BM) for output, end in zip(outputs, ends, strict=True)]
        kept_BN = mask.kept_indices(*self.layout.grid)
        tokens_BND = keep_tokens(rearrange(maps[-1], "b d h w -> b (h w) d"), kept_BN, 0)
        stages_BDhw = tuple(maps[numbers.index(stage)] for stage in stages)
        return Features(tokens_BND, self.layout.grid, kept_BN, draw_B=mask.draw_B, stages_BDhw=stages_BDhw)

    def _map(self, backbone: Any, tokens_BND: Tensor, block: int, kept_BM: Tensor) -> Tensor:
        """The map (B, D, h, w) after a block, 0 where hidden, from tokens in timm's order."""
        units = backbone.reroll(tokens_BND, block, mask=kept_BM)  # with any mask it keeps units apart
        high, wide = units.shape[2:4]
        map_BDhw = map_of_kept(rearrange(units, "b m h w d -> b m (h w d)"), kept_BM, self.units)
        return rearrange(map_BDhw, "b (fh fw d) h w -> b d (h fh) (w fw)", fh=high, fw=wide)

    def _keep_units(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook: what enters the first block, with the kept mask units alone while a mask is at work."""
        if self._kept_BM is None:
            return args
        units_BNUD = rearrange(args[0], "b (n u) d -> b n u d", u=math.prod(self.units))
        index = self._kept_BM[:, None, :, None].expand(-1, units_BNUD.shape[1], -1, units_BNUD.shape[3])
        return (rearrange(units_BNUD.gather(2, index), "b n m d -> b (n m) d"),)
