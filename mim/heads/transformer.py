"""Transformer: MAE's decoder, for features with or without the hidden tokens.

Shapes: B batch, N tokens, K prefix tokens, D width, P target entries of one token.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from mim.heads.decoder import Decoder, Norm
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.attention import attention_layer
from mim.ops.patches import unpatchify
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Transformer(Decoder, name="transformer"):
    """Embeds the tokens, puts a learned mask token at dropped positions, adds positions, runs transformer blocks.

    Prefix tokens pass through. Without dropped tokens there is no mask token.
    Source: MAE, models_mae.py, forward_decoder; with other values of the last keys vit-pytorch, mae.py, and
    IcarusWizard/MAE, model.py.

    Args:
        embed: whether a linear layer maps the encoder's tokens to `width` channels; false needs HEAD.width equal to
            ENCODER.width. IcarusWizard/MAE: false; vit-pytorch: only where the two differ.
        positions_of: the tokens that positions are added to: `all`, or `hidden`, the mask tokens alone, which needs an
            encoder that drops hidden tokens. vit-pytorch: `all`, in some older versions `hidden`.
        qkv_bias: whether queries, keys and values have a bias. vit-pytorch and IcarusWizard/MAE: false.
        head_width: channels of an attention head, for which heads need not divide the width; 0: width / heads.
            vit-pytorch: 64.

    Raises ValueError where the widths differ without `embed`, and for positions of hidden tokens that nothing drops.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        *,
        embed: bool = True,
        positions_of: Literal["all", "hidden"] = "all",
        qkv_bias: bool = True,
        head_width: int = 0,
        **shared: Any,
    ):
        at_least("HEAD", 0, head_width=head_width)
        if positions_of == "hidden" and not encoder.drops_hidden:
            raise ValueError(
                "HEAD.positions_of hidden needs an encoder that drops hidden tokens: use ENCODER.hidden drop, or "
                "HEAD.positions_of all"
            )
        num_placed = encoder.num_prefix if positions_of == "all" else 0

        def block(width: int, heads: int, mlp_ratio: float, norm: Norm) -> Block:
            attention = attention_layer(head_width)
            return Block(width, heads, mlp_ratio, qkv_bias, norm_layer=norm, attn_layer=attention)  # type: ignore[arg-type]

        super().__init__(encoder, target, block, embed, num_placed, head_width > 0, **shared)
        self.positions_of, width = positions_of, self.predict.in_features
        if not embed and width != encoder.width:
            raise ValueError(
                f"HEAD.embed false: HEAD.width {width} must be the width of the encoder's tokens, {encoder.width}; or "
                "use HEAD.embed true"
            )

    @classmethod
    def infer_keys(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The config keys of a head, from its state dict, which does not show `heads`."""
        width = state["predict.weight"].shape[1]
        ratio = len(state["layers.0.mlp.fc1.weight"]) / width
        return {"width": width, "depth": depth_of(state, "layers."), "mlp_ratio": ratio}

    def forward(self, features: Features) -> Prediction:
        features, prefix = self.fused(features), self.encoder.num_prefix
        tokens_BND = self._fill(self._embedded(features.tokens_BND), features.kept_BN)
        if features.prefix_BKD is not None:
            tokens_BND = torch.cat([self._embedded(features.prefix_BKD), tokens_BND], dim=1)
        if self.positions_of == "all":
            tokens_BND = tokens_BND + self.positions
        for block in self.layers:
            tokens_BND = block(tokens_BND)
        patches_BNP = self.predict(self.norm(tokens_BND[:, prefix:]))
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid))

    def _embedded(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND if self.embed is None else self.embed(tokens_BND)

    def _fill(self, tokens_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """The tokens of the full grid: the kept ones at their positions, the mask token at all others."""
        if kept_BN is None or self.mask_token is None:
            return tokens_BND
        batch, _, width = tokens_BND.shape
        count = self.encoder.grid[0] * self.encoder.grid[1]
        filler_1ND = self.mask_token if self.positions_of == "all" else self.mask_token + self.positions
        filler_BND = filler_1ND.to(tokens_BND.dtype).expand(batch, count, width)
        return filler_BND.scatter(1, kept_BN[..., None].expand(-1, -1, width), tokens_BND)
