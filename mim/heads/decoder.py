"""Decoder: what the heads made of transformer blocks share; weights start as in MAE's decoder."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import at_least
from mim.ops.positions import sincos_table
from mim.structures import EncoderSpec, TargetSpec

NORM = partial(nn.LayerNorm, eps=1e-6)


class Decoder(Head):
    """Transformer blocks with fixed sine-cosine positions, a last norm and a linear map to the target.

    Source: MAE, models_mae.py, forward_decoder (LayerNorm eps 1e-6, mask token normal with std .02, linear layers
    xavier-uniform with zero bias).

    Args:
        block: builds one block from (width, heads, mlp_ratio).
        embed: whether a linear layer maps the encoder's tokens to `width` channels.
        num_prefix: prefix tokens that pass through the blocks; they have zeros as positions.
        width: channels of a token in the decoder, a multiple of 4.
        depth: number of transformer blocks.
        heads: attention heads of a block; they must divide the width.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the width.
    """

    fills_dropped = True
    positions: Tensor
    mask_token: nn.Parameter | None

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        block: Callable[[int, int, float], nn.Module],
        embed: bool,
        num_prefix: int,
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
        if embed:
            self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if encoder.drops_hidden else None
        self.layers = nn.ModuleList(block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = NORM(width)
        self.predict = nn.Linear(width, self.entries_per_side**2 * target.channels)
        self.register_buffer("positions", sincos_table(encoder.grid, width, num_prefix), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)
