"""Transformer: MAE's decoder, for features with or without the hidden tokens.

Shapes: B batch, N tokens, K prefix tokens, D width, P target entries of one token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from mim.heads.decoder import NORM, Decoder
from mim.io.weights import depth_of
from mim.ops.patches import unpatchify
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Transformer(Decoder, name="transformer"):
    """Embeds the tokens, puts a learned mask token at dropped positions, adds positions, runs transformer blocks.

    Prefix tokens pass through. Without dropped tokens there is no mask token.
    Source: MAE, models_mae.py, forward_decoder.
    """

    def __init__(self, encoder: EncoderSpec, target: TargetSpec, **shared: Any):
        super().__init__(encoder, target, _block, True, encoder.num_prefix, **shared)

    @classmethod
    def infer_keys(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The config keys of a head, from its state dict, which does not show `heads`."""
        width = len(state["embed.weight"])
        ratio = len(state["layers.0.mlp.fc1.weight"]) / width
        return {"width": width, "depth": depth_of(state, "layers."), "mlp_ratio": ratio}

    def forward(self, features: Features) -> Prediction:
        prefix = self.encoder.num_prefix
        tokens_BND = self._fill(self.embed(features.tokens_BND), features.kept_BN)
        if features.prefix_BKD is not None:
            tokens_BND = torch.cat([self.embed(features.prefix_BKD), tokens_BND], dim=1)
        tokens_BND = tokens_BND + self.positions
        for block in self.layers:
            tokens_BND = block(tokens_BND)
        patches_BNP = self.predict(self.norm(tokens_BND[:, prefix:]))
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid))

    def _fill(self, tokens_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """The tokens of the full grid: the kept ones at their positions, the mask token at all others."""
        if kept_BN is None or self.mask_token is None:
            return tokens_BND
        batch, _, width = tokens_BND.shape
        count = self.encoder.grid[0] * self.encoder.grid[1]
        filler_BND = self.mask_token.to(tokens_BND.dtype).expand(batch, count, width)
        return filler_BND.scatter(1, kept_BN[..., None].expand(-1, -1, width), tokens_BND)


def _block(width: int, heads: int, mlp_ratio: float) -> Block:
    return Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=NORM)  # type: ignore[arg-type]
