"""MLP: a small network that predicts each token's target entries alone.

Shapes: B batch, N tokens, D width, P target entries of one token.
"""

from itertools import pairwise
from typing import Any

from torch import nn

from mim.heads.base import Head
from mim.io.checks import at_least
from mim.ops.patches import unpatchify
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class MLP(Head, name="mlp"):
    """Linear layers with GELU between them. Source: SimMIM's ablation of heads (2-layer MLP).

    Args:
        width: channels of a hidden layer.
        depth: number of hidden layers.
    """

    def __init__(self, encoder: EncoderSpec, target: TargetSpec, *, width: int = 512, depth: int = 1, **shared: Any):
        super().__init__(encoder, target, **shared)
        at_least("HEAD", 1, width=width, depth=depth)
        widths = [encoder.width] + [width] * depth
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.entries_per_side**2 * target.channels))

    def forward(self, features: Features) -> Prediction:
        patches_BNP = self.layers(self.fused(features).tokens_BND)
        return Prediction(unpatchify(patches_BNP, self.entries_per_side, features.grid))
