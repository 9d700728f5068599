"""CrossAttention: CrossMAE's decoder, in which each hidden place reads the visible tokens by itself.

Shapes: B batch, N tokens of the full grid, M places that are decoded, K tokens that are read, D width, H heads,
P target entries of one token.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import at_least, shares
from mim.ops.patches import unpatchify
from mim.ops.positions import sincos_table
from mim.ops.seeding import scores
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Reading(nn.Module):
    """Multi-head attention of queries, `width` wide, to other tokens, `source` wide."""

    def __init__(self, width: int, source: int, heads: int):
        super().__init__()
        self.heads, self.fused_attn = heads, True  # the kernel: mim.ops.attention chooses
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries_BMD: Tensor, read_BKD: Tensor) -> Tensor:
        q_BHMD = rearrange(self.q(queries_BMD), "b m (h d) -> b h m d", h=self.heads)
        k_BHKD, v_BHKD = rearrange(self.kv(read_BKD), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        if self.fused_attn:
            mixed_BHMD = F.scaled_dot_product_attention(q_BHMD, k_BHKD, v_BHKD)
        else:
            scaled_BHMD = q_BHMD * q_BHMD.shape[-1] ** -0.5
            mixed_BHMD = (scaled_BHMD @ k_BHKD.transpose(-2, -1)).softmax(dim=-1) @ v_BHKD
        return self.proj(rearrange(mixed_BHMD, "b h m d -> b m (h d)"))


class ReadingBlock(nn.Module):
    """Queries read other tokens, then pass an MLP, each behind a norm and beside a shortcut. Queries never mix."""

    def __init__(self, width: int, source: int, heads: int, mlp_ratio: float):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.norm1, self.attn = norm(width), Reading(width, source, heads)
        self.norm2, self.mlp = norm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, queries_BMD: Tensor, read_BKD: Tensor) -> Tensor:
        queries_BMD = queries_BMD + self.attn(self.norm1(queries_BMD), read_BKD)
        return queries_BMD + self.mlp(self.norm2(queries_BMD))


class CrossAttention(Head, name="cross_attention"):
    """Asks for each hidden place with a learned token plus its position; the blocks let it read the visible tokens.

    Prefix tokens are read too. While training, a share of the hidden places is decoded, drawn anew with each mask, each
    with the same chance, and the loss is over those. In eval mode, and under a mask that nothing was drawn with, all
    hidden places are. The map is 0 where nothing is decoded.

    Args:
        width, depth, heads, mlp_ratio: of the blocks.
        share: of the hidden places that a training step decodes, above 0 and at most 1; rounded, one at least.

    Source: CrossMAE (Fu et al., arXiv:2401.14391), TonyLianLong/CrossMAE, models_cross.py without weight_fm (positions,
    norms and initial weights are MAE's; keys and values come from the encoder's normed tokens at its own width). There
    kept_mask_ratio is a share of all places: share = kept_mask_ratio / mask_ratio. Differs from: no inter-block
    attention, which lets each block read a learned sum of the encoder's blocks: features hold the last tokens alone.
    """

    fills_dropped = True
    hidden_only = True
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
        share: float = 1.0,
    ):
        super().__init__(encoder, target)
        at_least("HEAD", 1, width=width, depth=depth, heads=heads)
        at_least("HEAD", 1 / width, mlp_ratio=mlp_ratio)
        shares("HEAD", share=share)
        if width % heads:
            raise ValueError(f"HEAD.heads {heads} does not divide HEAD.width {width}")
        self.share = share
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.layers = nn.ModuleList(ReadingBlock(width, encoder.width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, self.entries_per_side**2 * target.channels)
        self.register_buffer("positions", sincos_table(encoder.grid, width), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, features: Features) -> Prediction:
        read_BKD, places_BM = features.tokens_BND, self._places(features)
        if features.prefix_BKD is not None:
            read_BKD = torch.cat([features.prefix_BKD, read_BKD], dim=1)
        queries_BMD = self.mask_token + self.positions[0][places_BM]
        for block in self.layers:
            queries_BMD = block(queries_BMD, read_BKD)
        patches_BMP = self.predict(self.norm(queries_BMD))
        batch, places, entries = patches_BMP.shape
        count, visible = self.positions.shape[1], features.tokens_BND.shape[1]
        nothing_BNP = patches_BMP.new_zeros(batch, count, entries)
        patches_BNP = nothing_BNP.scatter(1, places_BM[..., None].expand(-1, -1, entries), patches_BMP)
        predicted_BHW = None
        if features.kept_BN is not None and places < count - visible:
            nowhere_BN = torch.zeros(batch, count, dtype=torch.bool, device=places_BM.device)
            predicted_BHW = rearrange(nowhere_BN.scatter(1, places_BM, True), "b (h w) -> b h w", h=features.grid[0])
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid), predicted_BHW)

    def _places(self, features: Features) -> Tensor:
        """Indices of the places to decode, (B, M); every place of an image of which nothing was hidden."""
        count = self.positions.shape[1]
        order_BN = torch.arange(count, device=features.tokens_BND.device).expand(len(features.tokens_BND), -1)
        if features.kept_BN is None:
            return order_BN
        decoded = hidden = count - features.kept_BN.shape[1]
        if self.training and self.share < 1 and features.draw_B is not None:
            order_BN, decoded = scores(features.draw_B, count), max(1, round(self.share * hidden))
        last_BN = order_BN.scatter(1, features.kept_BN, torch.iinfo(order_BN.dtype).max)
        return last_BN.argsort(dim=1)[:, :decoded]
