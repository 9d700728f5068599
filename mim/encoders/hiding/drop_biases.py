"""Dropping in transformers with biases of relative positions.

Shapes: B batch, H heads, M kept patch tokens, N tokens, K prefix tokens, D width.
"""

from typing import Any

from timm.models import beit, vision_transformer_relpos
from torch import Tensor, nn

from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, keep_pairs
from mim.encoders.hiding.layout import Layout


class BiasFromArgument(vision_transformer_relpos.RelPosAttention):
    """The attention of VisionTransformerRelPos, which adds the bias that its block is called with."""

    rel_pos = None


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
