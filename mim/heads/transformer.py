"""Transformer: MAE's decoder, for dropped or dense features.

Shapes: B batch, N tokens, K prefix tokens, D width, P target entries of one token.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.patches import unpatchify
from mim.ops.positions import sincos_table
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Transformer(Head, name="transformer"):
    """Embeds the tokens, fills dropped places with a learned token, adds positions, and runs transformer blocks.

    Prefix tokens pass through. Dense features need no filler, so there is then no mask token.

    Args:
        width, depth, heads, mlp_ratio: of the transformer.

    Source: MAE, models_mae.py, forward_decoder (its own fixed sine-cosine positions, LayerNorm eps 1e-6, mask token
    normal with std .02, linear layers xavier-uniform).
    """

    fills_dropped = True
    positions: Tensor

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
    ):
        super().__init__(encoder, target)
        at_least("HEAD", 1, width=width, depth=depth, heads=heads)
        at_least("HEAD", 1 / width, mlp_ratio=mlp_ratio)
        if width % heads:
            raise ValueError(f"HEAD.heads {heads} does not divide HEAD.width {width}")
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if encoder.drops_hidden else None
        self.layers = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(depth)
        )
        self.norm = norm(width)
        self.predict = nn.Linear(width, self.entries_per_side**2 * target.channels)
        table = sincos_table(encoder.grid, width, encoder.num_prefix)
        self.register_buffer("positions", table, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    @classmethod
    def infer_keys(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The config keys that the weights of such a head tell; heads leave no trace in them."""
        width, ratio = len(state["embed.weight"]), len(state["layers.0.mlp.fc1.weight"]) / len(state["embed.weight"])
        return {"width": width, "depth": depth_of(state, "layers."), "mlp_ratio": ratio}

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

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
        """All tokens of the grid: the kept ones in their places, the learned token everywhere else."""
        if kept_BN is None or self.mask_token is None:
            return tokens_BND
        batch, _, width = tokens_BND.shape
        count = self.encoder.grid[0] * self.encoder.grid[1]
        filler = self.mask_token.to(tokens_BND.dtype).expand(batch, count, width)
        return filler.scatter(1, kept_BN[..., None].expand(-1, -1, width), tokens_BND)
