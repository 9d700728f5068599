"""Convolution: data2vec 2.0's decoder, convolutions over the grid of tokens with noise in dropped places.

Shapes: B batch, N tokens of the full grid, D width, h w tokens high and wide.
"""

import math
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import at_least
from mim.ops.patches import unpatchify
from mim.ops.seeding import normals
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class ConvBlock(nn.Module):
    """A convolution in groups, LayerNorm over channels without weights, GELU; between equal widths with a residual."""

    def __init__(self, source: int, width: int, kernel: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(source, width, kernel, padding=kernel // 2, groups=groups)
        self.residual = source == width

    def forward(self, map_BDhw: Tensor) -> Tensor:
        convolved_BhwD = rearrange(self.conv(map_BDhw), "b d h w -> b h w d")
        normed_BhwD = F.layer_norm(convolved_BhwD, convolved_BhwD.shape[-1:])
        output_BDhw = F.gelu(rearrange(normed_BhwD, "b h w d -> b d h w"))
        return output_BDhw + map_BDhw if self.residual else output_BDhw


class Convolution(Head, name="convolution"):
    """Puts noise in dropped places, runs convolutions over the grid, and maps each token to the target.

    The noise of a training step is a function of the mask. Eval mode, and a mask made by hand, have zeros in its place.
    There are no positions and no mask token; prefix tokens are left out. Where the encoder replaces hidden tokens,
    nothing is filled.

    Source: data2vec 2.0 (Baevski et al., arXiv:2212.07525), fairseq, examples/data2vec/models/modalities, Decoder2d and
    decoder_input, with the values of config/v2/base_images_only_task.yaml.

    Args:
        width: channels of a convolution, a multiple of `groups`. data2vec 2.0: the encoder's width.
        depth: number of convolutions.
        kernel: side of a convolution in tokens, odd and at least 3.
        groups: groups of channels that a convolution does not mix; the encoder's width is a multiple, too.
        noise: standard deviation of the normal noise in dropped places; 0 for zeros.

    Raises ValueError for another kernel, and for groups that do not divide the widths.
    """

    fills_dropped = True

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        *,
        width: int = 768,
        depth: int = 6,
        kernel: int = 3,
        groups: int = 16,
        noise: float = 0.01,
        **shared: Any,
    ):
        super().__init__(encoder, target, **shared)
        at_least("HEAD", 1, width=width, depth=depth, groups=groups)
        at_least("HEAD", 0, noise=noise)
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"HEAD.kernel is {kernel}: it must be odd and at least 3, to reach the tokens around each")
        for name, value in (("HEAD.width", width), ("the width of the encoder's tokens,", encoder.width)):
            if value % groups:
                raise ValueError(f"HEAD.groups {groups} does not divide {name} {value}")
        self.noise = noise
        self.layers = nn.ModuleList(
            ConvBlock(encoder.width if number == 0 else width, width, kernel, groups) for number in range(depth)
        )
        self.predict = nn.Linear(width, self.entries_per_side**2 * target.channels)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, features: Features) -> Prediction:
        features = self.fused(features)
        map_BDhw = rearrange(self._whole_grid(features), "b (h w) d -> b d h w", h=features.grid[0])
        for block in self.layers:
            map_BDhw = block(map_BDhw)
        patches_BNP = self.predict(rearrange(map_BDhw, "b d h w -> b (h w) d"))
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid))

    def _whole_grid(self, features: Features) -> Tensor:
        """The tokens of the full grid: the kept ones in their places, noise in all others."""
        tokens_BND, kept_BN, draw_B = features.tokens_BND, features.kept_BN, features.draw_B
        if kept_BN is None:
            return tokens_BND
        batch, _, width = tokens_BND.shape
        count = math.prod(features.grid)
        if self.training and self.noise and draw_B is not None:
            noise_BND = (self.noise * normals(draw_B, count * width)).unflatten(1, (count, width))
            filler_BND = noise_BND.to(tokens_BND.dtype)
        else:
            filler_BND = tokens_BND.new_zeros(batch, count, width)
        return filler_BND.scatter(1, kept_BN[..., None].expand(-1, -1, width), tokens_BND)
