"""PixelShuffle: SimMIM's head, a 1x1 convolution with one channel for each target entry of a token.

Shapes: B batch, N tokens, D width, H W entries of the target, h w tokens high and wide.
"""

from typing import Any

from einops import rearrange
from torch import nn

from mim.heads.base import Head
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class PixelShuffle(Head, name="pixel_shuffle"):
    """Predicts each token's target entries by one linear map. Source: SimMIM, models/simmim.py, decoder."""

    def __init__(self, encoder: EncoderSpec, target: TargetSpec, **shared: Any):
        super().__init__(encoder, target, **shared)
        self.conv = nn.Conv2d(encoder.width, self.entries_per_side**2 * target.channels, kernel_size=1)
        self.shuffle = nn.PixelShuffle(self.entries_per_side)

    def forward(self, features: Features) -> Prediction:
        map_BDhw = rearrange(self.fused(features).tokens_BND, "b (h w) d -> b d h w", h=features.grid[0])
        return Prediction(self.shuffle(self.conv(map_BDhw)))
