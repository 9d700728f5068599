"""Dropping in transformers with biases of relative positions.

Shapes: B batch, H heads, M kept patch tokens, N tokens, K prefix tokens, D width, d width of a head.
"""

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from timm.models import beit, vision_transformer_relpos
from torch import Tensor, nn

from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, keep_pairs
from mim.encoders.hiding.layout import Layout


class BiasFromArgument(vision_transformer_relpos.RelPosAttention):
    """The attention of VisionTransformerRelPos, which adds the bias that its block is called with."""

    def forward(self, x_BND: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        query, key, value = rearrange(self.qkv(x_BND), "b n (c h d) -> c b h n d", c=3, h=self.num_heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.fused_attn:
            rate = self.attn_drop.p if self.training else 0.0
            mixed_BHNd = F.scaled_dot_product_attention(query, key, value, attn_mask=shared_rel_pos, dropout_p=rate)
        else:
            scores_BHNN = query * self.scale @ key.mT
            scores_BHNN = scores_BHNN if shared_rel_pos is None else scores_BHNN + shared_rel_pos
            mixed_BHNd = self.attn_drop(scores_BHNN.softmax(dim=-1)) @ value
        out_BND: Tensor = self.proj_drop(self.proj(rearrange(mixed_BHNd, "b h n d -> b n (h d)")))
        return out_BND


class BeitBiasFromArgument(beit.Attention):
    """The attention of Beit, which adds the bias that its block is called with."""

    def _get_rel_pos_bias(self) -> float:  # type: ignore[override]
        return 0.0


class DropBiases(DropAtBlocks):
    """Drops hidden tokens of Beit and VisionTransformerRelPos, with biases from a table or an MLP, shared or by block.

    A hook on each block computes its bias, gathers it for the kept tokens and passes it on in the place of the shared
    one, also for whole images.
    """

    families = (beit.Beit, vision_transformer_relpos.VisionTransformerRelPos)

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        for block in backbone.blocks:
            if isinstance(backbone, beit.Beit):
                block.attn.__class__ = BeitBiasFromArgument
            else:
                block.attn.__class__ = BiasFromArgument
            block.register_forward_pre_hook(self._pass_bias, with_kwargs=True)

    def _pass_bias(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """A hook: the arguments of a block, with the bias between its tokens."""
        (name, shared_HNN), *_ = kwargs.items()
        biases = [bias.flatten(0, -3) for bias in (shared_HNN, own_bias(block.attn)) if bias is not None]
        if not biases:
            return args, kwargs
        bias_HNN = biases[0] if len(biases) == 1 else biases[0] + biases[1]
        high, wide = self.layout.grid
        if self._kept_BM is None:
            return args, {name: bias_HNN[None]}
        return args, {name: keep_pairs(bias_HNN, self._kept_BM, bias_HNN.shape[-1] - high * wide)}


def own_bias(attention: nn.Module) -> Tensor | None:
    """The bias (1, H, N, N) that an attention has for itself; None where it shares one or has none."""
    if isinstance(attention, beit.Attention):
        own = attention.relative_position_bias_table is not None
        return beit.Attention._get_rel_pos_bias(attention) if own else None
    own_module: Any = dict(attention.named_children()).get("rel_pos")
    return None if own_module is None else own_module.get_bias()
