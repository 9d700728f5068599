"""Decoder: what the heads made of transformer blocks share; weights start as in MAE's decoder.

Shapes: B batch, N tokens, D width.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import above_zero, at_least
from mim.ops.initial import LinearInit, initialise_linear
from mim.ops.positions import sincos_table
from mim.structures import EncoderSpec, TargetSpec

Norm = Callable[[int], nn.LayerNorm]


class Cosines(nn.Linear):
    """The cosine of the angle between a token and each of the learned vectors, from -1 to 1."""

    def __init__(self, width: int, outputs: int):
        super().__init__(width, outputs, bias=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return F.linear(F.normalize(tokens_BND, dim=-1), F.normalize(self.weight, dim=-1))


class Decoder(Head):
    """Transformer blocks with positions, a last norm and a linear map to the target.

    Source: MAE, models_mae.py, forward_decoder.

    Args:
        block: builds one block from (width, heads, mlp_ratio, norm).
        embed: whether a linear layer maps the encoder's tokens to `width` channels.
        num_prefix: prefix tokens with a position; where it is fixed, it is zero.
        wide_heads: whether the heads have a width of their own, so that they need not divide the width.
        width: channels of a token in the decoder; a multiple of 4 where positions are sincos.
        depth: number of transformer blocks.
        heads: attention heads of a block; they must divide the width.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the width.
        norm: whether a LayerNorm follows the last block. IcarusWizard/MAE: false.
        norm_eps: eps of every LayerNorm, above 0. MAE: 1e-6; vit-pytorch and IcarusWizard/MAE have PyTorch's default,
            1e-5.
        positions: `sincos` (fixed) or `learned` (vit-pytorch, IcarusWizard/MAE).
        linear_init: how linear layers begin: `xavier` (MAE: xavier-uniform with zero bias), `normal` (I-JEPA: normal
            with standard deviation 0.02, zero bias), or `pytorch` (as PyTorch makes them).
        init_std: standard deviation with which mask token and learned positions begin, which are normal, above 0.
            MAE: 0.02; vit-pytorch: 1.
        output: the last layer: `linear`, or `cosine`, which gives the cosines of the angles between a token and learned
            vectors, for logits of clusters (CAPI). LOSS.temperature scales them.
    """

    fills_dropped = True
    positions: Tensor
    mask_token: nn.Parameter | None

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        block: Callable[[int, int, float, Norm], nn.Module],
        embed: bool,
        num_prefix: int,
        wide_heads: bool = False,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        norm: bool = True,
        norm_eps: float = 1e-6,
        positions: Literal["sincos", "learned"] = "sincos",
        linear_init: LinearInit = "xavier",
        init_std: float = 0.02,
        output: Literal["linear", "cosine"] = "linear",
        **shared: Any,
    ):
        super().__init__(encoder, target, **shared)
        at_least("HEAD", 1, width=width, depth=depth, heads=heads)
        at_least("HEAD", 1 / width, mlp_ratio=mlp_ratio)
        above_zero("HEAD", norm_eps=norm_eps, init_std=init_std)
        if width % heads and not wide_heads:
            raise ValueError(f"HEAD.heads {heads} does not divide HEAD.width {width}")
        if output == "cosine" and not target.distribution:
            raise ValueError(
                "HEAD.output cosine predicts values from -1 to 1, logits of a target that is a distribution, such as "
                "TARGET.name clusters: use HEAD.output linear"
            )
        self.embed = nn.Linear(encoder.width, width) if embed else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if encoder.drops_hidden else None
        layer_norm = partial(nn.LayerNorm, eps=norm_eps)
        self.layers = nn.ModuleList(block(width, heads, mlp_ratio, layer_norm) for _ in range(depth))
        self.norm = layer_norm(width) if norm else nn.Identity()
        predict = Cosines if output == "cosine" else nn.Linear
        self.predict = predict(width, self.entries_per_side**2 * target.channels)
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(1, num_prefix + math.prod(encoder.grid), width))
        else:
            self.register_buffer("positions", sincos_table(encoder.grid, width, num_prefix), persistent=False)
        self._initialise(linear_init, init_std)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def _initialise(self, linear_init: LinearInit, std: float) -> None:
        initialise_linear(self, linear_init)
        for weight in (self.mask_token, self.positions):
            if isinstance(weight, nn.Parameter):
                nn.init.normal_(weight, std=std)
