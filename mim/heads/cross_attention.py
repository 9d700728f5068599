"""CrossAttention: CrossMAE's decoder, in which each hidden token attends to the visible tokens only.

Shapes: B batch, N tokens of the full grid, M tokens that are decoded, K tokens that are attended to, D width, H heads,
P target entries of one token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn

from mim.heads.decoder import Decoder, Norm
from mim.io.checks import shares
from mim.ops.patches import unpatchify
from mim.ops.seeding import scores
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Attention(nn.Module):
    """Multi-head attention of queries of `width` channels to tokens of `source` channels."""

    def __init__(self, width: int, source: int, heads: int):
        super().__init__()
        self.heads, self.fused_attn = heads, True  # mim.ops.attention chooses the kernel
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BMD: Tensor, tokens_BKD: Tensor) -> Tensor:
        q_BHMD = rearrange(self.q(queries_BMD), "b m (h d) -> b h m d", h=self.heads)
        k_BHKD, v_BHKD = rearrange(self.kv(tokens_BKD), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        if self.fused_attn:
            mixed_BHMD = F.scaled_dot_product_attention(q_BHMD, k_BHKD, v_BHKD)
        else:
            scaled_BHMD = q_BHMD * q_BHMD.shape[-1] ** -0.5
            mixed_BHMD = (scaled_BHMD @ k_BHKD.transpose(-2, -1)).softmax(dim=-1) @ v_BHKD
        return self.proj(rearrange(mixed_BHMD, "b h m d -> b m (h d)"))


class CrossBlock(nn.Module):
    """Cross-attention, then an MLP, each with a norm before it and a residual connection. Queries never mix."""

    def __init__(self, width: int, source: int, heads: int, mlp_ratio: float, norm: Norm):
        super().__init__()
        self.norm1, self.attn = norm(width), Attention(width, source, heads)
        self.norm2, self.mlp = norm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, queries_BMD: Tensor, tokens_BKD: Tensor) -> Tensor:
        queries_BMD = queries_BMD + self.attn(self.norm1(queries_BMD), tokens_BKD)
        return queries_BMD + self.mlp(self.norm2(queries_BMD))


class CrossAttention(Decoder, name="cross_attention"):
    """Queries, a learned token plus the position of each hidden token, attend to the visible and the prefix tokens.

    A training step decodes a share of the hidden tokens, chosen at random for each mask, and the loss is over those.
    Eval mode, and a mask made by hand, decode all hidden tokens. The map is 0 where nothing is decoded.

    Source: CrossMAE (Fu et al., arXiv:2401.14391), TonyLianLong/CrossMAE, models_cross.py without weight_fm (keys and
    values come from the encoder's last normed tokens, at its own width). Differs from: no inter-block attention, in
    which each block attends to a learned sum of the encoder's blocks; Features hold the last tokens only.

    Args:
        share: share of the hidden tokens that a training step decodes, above 0 and at most 1; at least one token.
            CrossMAE's kept_mask_ratio is a share of all tokens: share = kept_mask_ratio / mask_ratio.
    """

    hidden_only = True
    mask_token: nn.Parameter

    def __init__(self, encoder: EncoderSpec, target: TargetSpec, *, share: float = 1.0, **shared: Any):
        shares("HEAD", share=share)

        def block(width: int, heads: int, mlp_ratio: float, norm: Norm) -> CrossBlock:
            return CrossBlock(width, encoder.width, heads, mlp_ratio, norm)

        super().__init__(encoder, target, block, False, 0, **shared)
        self.share = share

    def forward(self, features: Features) -> Prediction:
        features = self.fused(features)
        tokens_BKD, decoded_BM = features.tokens_BND, self._decoded(features)
        if features.prefix_BKD is not None:
            tokens_BKD = torch.cat([features.prefix_BKD, tokens_BKD], dim=1)
        queries_BMD = self.mask_token + self.positions[0][decoded_BM]
        for block in self.layers:
            queries_BMD = block(queries_BMD, tokens_BKD)
        patches_BMP = self.predict(self.norm(queries_BMD))
        batch, decoded, entries = patches_BMP.shape
        count, visible = self.positions.shape[1], features.tokens_BND.shape[1]
        zeros_BNP = patches_BMP.new_zeros(batch, count, entries)
        patches_BNP = zeros_BNP.scatter(1, decoded_BM[..., None].expand(-1, -1, entries), patches_BMP)
        predicted_BHW = None
        if features.kept_BN is not None and decoded < count - visible:
            none_BN = torch.zeros(batch, count, dtype=torch.bool, device=decoded_BM.device)
            predicted_BHW = rearrange(none_BN.scatter(1, decoded_BM, True), "b (h w) -> b h w", h=features.grid[0])
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid), predicted_BHW)

    def _decoded(self, features: Features) -> Tensor:
        """Indices of the tokens to decode, (B, M); all tokens where nothing was hidden."""
        count = self.positions.shape[1]
        order_BN = torch.arange(count, device=features.tokens_BND.device).expand(features.tokens_BND.shape[0], -1)
        if features.kept_BN is None:
            return order_BN
        decoded = hidden = count - features.kept_BN.shape[1]
        if self.training and self.share < 1 and features.draw_B is not None:
            order_BN, decoded = scores(features.draw_B, count), max(1, round(self.share * hidden))
        last_BN = order_BN.scatter(1, features.kept_BN, torch.iinfo(order_BN.dtype).max)
        return last_BN.argsort(dim=1)[:, :decoded]
