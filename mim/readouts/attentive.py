"""Attentive: learned queries gather what a linear layer reads from all patch tokens.

Shapes: B batch, N tokens attended to, D width, Q queries, H heads, K outputs, d channels of a head of the keys, v of a
head of the values, C channels that the linear layer reads.
"""

import math
from typing import Literal

import torch
from einops import rearrange
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mim.io.checks import above_zero, at_least
from mim.ops.truncated_normal import trunc_normal_
from mim.readouts.base import AttendingReadout
from mim.structures import EncoderSpec, Features

PUBLISHED_QUERIES = 32  # of efficient probing's table
HEAD_WIDTH = 64  # channels of a head in V-JEPA's ViT-L
MLP_RATIO = 4


class EfficientPool(nn.Module):
    """Efficient probing: tokens themselves are the keys, and each head of a query reads channels of its own.

    Args:
        width: channels of a token; `queries` times `heads` must divide it.
        init_std: standard deviation of the initial queries.
    """

    def __init__(self, width: int, queries: int, heads: int, init_std: float):
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width) * init_std)
        self.value = nn.Linear(width, width, bias=False)

    def attention(self, tokens_BND: Tensor) -> Tensor:
        """The shares (B, Q, H, N) of the tokens in what a head of a query gathers."""
        q_QHd = rearrange(self.queries, "q (h d) -> q h d", h=self.heads)
        k_BNHd = rearrange(tokens_BND, "b n (h d) -> b n h d", h=self.heads)
        scores_BQHN = torch.einsum("q h d, b n h d -> b q h n", q_QHd * q_QHd.shape[-1] ** -0.5, k_BNHd)
        return scores_BQHN.softmax(dim=-1)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """What the queries gathered, one after the other, (B, D)."""
        heads_QHvD = rearrange(self.value.weight, "(q h v) d -> q h v d", q=len(self.queries), h=self.heads)
        # the mean first and its value then: the same sum as that of the values, for a fraction of the products
        mean_BQHD = torch.einsum("b q h n, b n d -> b q h d", self.attention(tokens_BND), tokens_BND)
        return rearrange(torch.einsum("b q h d, q h v d -> b q h v", mean_BQHD, heads_QHvD), "b q h v -> b (q h v)")


class BlockPool(nn.Module):
    """V-JEPA 2: blocks of self-attention over the tokens, then one block of cross-attention with learned queries.

    Args:
        width: channels of a token; `heads` must divide it.
        blocks: number of blocks of self-attention.
        init_std: standard deviation of the initial queries and of the weights of linear layers.
    """

    def __init__(self, width: int, queries: int, heads: int, blocks: int, init_std: float):
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=MLP_RATIO, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(blocks)
        )
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, MLP_RATIO * width)
        self._initialise(init_std)

    def mixed(self, tokens_BND: Tensor) -> Tensor:
        """The tokens that are attended to: behind the blocks of self-attention and a norm."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return self.norm1(tokens_BND)

    def attention(self, tokens_BND: Tensor) -> Tensor:
        """The shares (B, Q, H, N) of the tokens in what a head of a query gathers."""
        return self._shares(self.mixed(tokens_BND))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """The queries behind the block, one after the other, (B, Q D)."""
        mixed_BND = self.mixed(tokens_BND)
        v_BNHd = rearrange(self.value(mixed_BND), "b n (h d) -> b n h d", h=self.heads)
        gathered_BQHd = torch.einsum("b q h n, b n h d -> b q h d", self._shares(mixed_BND), v_BNHd)
        queries_BQD = self.queries + rearrange(gathered_BQHd, "b q h d -> b q (h d)")
        queries_BQD = queries_BQD + self.mlp(self.norm2(queries_BQD))
        return rearrange(queries_BQD, "b q d -> b (q d)")

    def _shares(self, mixed_BND: Tensor) -> Tensor:
        q_QHd = rearrange(self.query(self.queries), "q (h d) -> q h d", h=self.heads)
        k_BNHd = rearrange(self.key(mixed_BND), "b n (h d) -> b n h d", h=self.heads)
        scores_BQHN = torch.einsum("q h d, b n h d -> b q h n", q_QHd * q_QHd.shape[-1] ** -0.5, k_BNHd)
        return scores_BQHN.softmax(dim=-1)

    @torch.no_grad()
    def _initialise(self, std: float) -> None:
        """As in V-JEPA 2: what ends a residual branch starts smaller, the more so the later its block."""
        trunc_normal_(self.queries, std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std)
                nn.init.zeros_(module.bias)
        for number, block in enumerate(self.blocks, 1):
            for last in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                last.weight.div_(math.sqrt(2 * number))  # type: ignore[union-attr, operator]
        self.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(self.blocks))))


class Attentive(AttendingReadout, name="attentive"):
    """Queries attend to all patch tokens, and a linear layer reads what they gathered.

    Where features are spread over the patches, as those of masked image modeling are, this tells more of them than
    their mean or the class token does.

    Source: `efficient`: efficient probing (Psomas et al., arXiv:2506.10178), billpsomas/efficient-probing,
    poolings/ep.py and probe_heads.py, with a BatchNorm without weights before the linear layer. `block`: V-JEPA 2
    (arXiv:2506.09985), src/models/attentive_pooler.py, with `blocks: 3` as published there and `blocks: 0` in V-JEPA
    (arXiv:2404.08471). Differs from: V-JEPA's cross-attention ends with a linear map that V-JEPA 2 leaves out;
    `efficient` with more than one head, which its code does not allow, splits the channels of each query once more.

    Args:
        form: `efficient`, a softmax over the tokens as they are and one linear map of them; or `block`, a transformer
            block of cross-attention, with norms, queries, keys and values, residual connections and an MLP.
        queries: number of queries; 0 means as published, 32 for `efficient` (fewer where 32 does not divide the
            encoder's width) and 1 for `block`. With `efficient` each query gathers a share of the channels, so that
            queries times heads must divide the encoder's width; with `block` each gathers as many as a token has, and
            the linear layer reads all of them.
        heads: attention heads, which must divide the encoder's width; 0 means 1 for `efficient`, and one for each 64
            channels for `block`.
        blocks: number of blocks of self-attention over the tokens ahead of the queries, for `block` alone.
        class_token: `none` leaves the class token out; `beside` keeps it apart and gives it to the linear layer beside
            what the queries gathered; `attended` puts it among the tokens. The sources leave it out, but for encoders
            that were trained by that token, where it is attended to. Registers are always left out.
        init_std: standard deviation of the initial queries, above 0, and with `block` of the linear layers ahead of the
            last. The last one starts as PyTorch makes it, as in both sources.

    Raises ValueError where the encoder has no class token that `class_token` asks for, where queries or heads do not
    divide the width, and for blocks with `efficient`.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        outputs: int,
        *,
        form: Literal["efficient", "block"] = "efficient",
        queries: int = 0,
        heads: int = 0,
        blocks: int = 0,
        class_token: Literal["none", "beside", "attended"] = "none",  # noqa: S107 (no password)
        init_std: float = 0.02,
    ):
        super().__init__(encoder, outputs)
        at_least("READOUT", 0, queries=queries, heads=heads, blocks=blocks)
        above_zero("READOUT", init_std=init_std)
        self.class_role, width = class_token, encoder.width
        if self.class_role != "none" and not encoder.num_prefix:
            raise ValueError(f"READOUT.class_token is {class_token}, and this encoder has no class token: use none")
        if blocks and form != "block":
            raise ValueError(f"READOUT.blocks is {blocks}, and READOUT.form {form} has none: use READOUT.form block")
        self.pool: EfficientPool | BlockPool
        self.norm: nn.Module = nn.Identity()
        if form == "efficient":
            queries, heads = queries or math.gcd(PUBLISHED_QUERIES, width), heads or 1
            if width % (queries * heads):
                raise ValueError(
                    f"READOUT.queries {queries} times READOUT.heads {heads} does not divide the encoder's width "
                    f"{width}, which they share: use fewer, or READOUT.queries 0"
                )
            self.pool, gathered = EfficientPool(width, queries, heads, init_std), width
        else:
            queries, heads = queries or 1, heads or _published_heads(width)
            if width % heads:
                raise ValueError(f"READOUT.heads {heads} does not divide the encoder's width {width}")
            self.pool, gathered = BlockPool(width, queries, heads, blocks, init_std), queries * width
        gathered += width if self.class_role == "beside" else 0
        if form == "efficient":
            self.norm = nn.BatchNorm1d(gathered, affine=False, eps=1e-6)
        self.linear = nn.Linear(gathered, outputs)

    def forward(self, features: Features) -> Tensor:
        gathered_BC = self.pool(self._attended(features))
        if self.class_role == "beside":
            gathered_BC = torch.cat([gathered_BC, features.pooled("class")], dim=1)
        return self.linear(self.norm(gathered_BC))

    def attention(self, features: Features) -> Tensor:
        """The attention (B, Q, H, N): the shares of the patches, row by row, in what a head of a query gathers.

        With `class_token: attended` its share is left out, so that those of the patches sum to less than 1. With
        `blocks` they are shares of the tokens behind the blocks, at the same places.
        """
        shares_BQHN = self.pool.attention(self._attended(features))
        return shares_BQHN[..., 1:] if self.class_role == "attended" else shares_BQHN

    def blocks(self) -> list[nn.Module]:
        """The blocks of self-attention: the units of activation checkpointing."""
        return list(self.pool.blocks) if isinstance(self.pool, BlockPool) else []

    def _attended(self, features: Features) -> Tensor:
        """The tokens that queries attend to, (B, N, D)."""
        if self.class_role != "attended":
            return features.tokens_BND
        return torch.cat([features.pooled("class")[:, None], features.tokens_BND], dim=1)


def _published_heads(width: int) -> int:
    """One head for each 64 channels, or the next smaller number that divides the width."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)
