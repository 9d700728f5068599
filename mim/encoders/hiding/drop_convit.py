"""Dropping in ConViT.

Shapes: B batch, H heads, M kept patch tokens, N patch tokens, D width.
"""

from typing import Any

import torch
from einops import rearrange
from timm.models.convit import GPSA, Block, ConVit
from torch import Tensor

from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, keep_pairs
from mim.encoders.hiding.layout import Layout


class OffsetAttention(GPSA):
    """ConViT's attention by content and by offsets, with the offsets as an argument: timm's has them as a state."""

    def forward(self, x_BND: Tensor, offsets_BNN3: Tensor) -> Tensor:  # type: ignore[override]
        query_BHNd, key_BHNd = rearrange(self.qk(x_BND), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        value_BHNd = rearrange(self.v(x_BND), "b n (h d) -> b h n d", h=self.num_heads)
        content_BHNN = (query_BHNd @ key_BHNd.transpose(-2, -1) * self.scale).softmax(dim=-1)
        place_BHNN = rearrange(self.pos_proj(offsets_BNN3), "b n m h -> b h n m").softmax(dim=-1)
        gate_H11 = torch.sigmoid(self.gating_param)[:, None, None]
        shares_BHNN = (1 - gate_H11) * content_BHNN + gate_H11 * place_BHNN
        shares_BHNN = self.attn_drop(shares_BHNN / shares_BHNN.sum(dim=-1, keepdim=True))
        out_BND: Tensor = self.proj_drop(self.proj(rearrange(shares_BHNN @ value_BHNd, "b h n d -> b n (h d)")))
        return out_BND


class OffsetBlock(Block):
    """A block of ConViT that passes offsets between its tokens on to its attention."""

    def forward(self, x_BND: Tensor, offsets_BNN3: Tensor) -> Tensor:  # type: ignore[override]
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND), offsets_BNN3))
        out_BND: Tensor = x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))
        return out_BND


class DropOffsets(DropAtBlocks):
    """Drops hidden tokens of ConViT; its first blocks attend by the offsets between tokens, which are gathered."""

    families = (ConVit,)
    offsets_3NN: Tensor

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        local = [block for block in backbone.blocks if block.use_gpsa]
        high, wide = layout.grid
        offsets_3NN = local[0].attn.get_rel_indices(high * wide)[0].movedim(-1, 0) if local else torch.zeros(3, 0, 0)
        self.register_buffer("offsets_3NN", offsets_3NN, persistent=False)
        for block in local:
            block.__class__, block.attn.__class__ = OffsetBlock, OffsetAttention
            block.register_forward_pre_hook(self._pass_offsets)

    def _pass_offsets(self, block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook: the tokens that enter a block, and the offsets between them."""
        if self._kept_BM is None:
            return (*args, self.offsets_3NN.movedim(0, -1)[None])
        return (*args, keep_pairs(self.offsets_3NN, self._kept_BM, 0).movedim(1, -1))
