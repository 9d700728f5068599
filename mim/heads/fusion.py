"""Fusion: one map from several stages of an encoder.

Shapes: B batch, N tokens, D width, h w entries of a map high and wide.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from mim.structures import EncoderSpec, Features


class Fusion(nn.Module):
    """The tokens of the encoder and those of earlier stages: a weighted sum, then a LayerNorm.

    A stage comes to the tokens' stride by means of its entries, and to their width by a linear map of its own; the
    encoder's own tokens stay as they are. The weights are a softmax of learned values that begin equal. Prefix tokens
    are not fused.

    Source: MFF (Liu et al., arXiv:2308.00261), open-mmlab/mmpretrain, selfsup/mff.py, for plain ViTs. Differs from: its
    norm is the encoder's last one, so that ENCODER.norm false gives the same formula; it fuses the class token too.
    """

    def __init__(self, encoder: EncoderSpec, stages: Sequence[int]):
        super().__init__()
        widths = [encoder.stages[stage].width for stage in stages]
        self.projections = nn.ModuleList(nn.Linear(width, encoder.width) for width in widths)
        self.weights = nn.Parameter(torch.ones(len(stages) + 1))  # the last is that of the encoder's tokens
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)

    def forward(self, features: Features) -> Features:
        shares = self.weights.softmax(dim=0)
        fused_BND = shares[-1] * features.tokens_BND
        for number, (projection, map_BDhw) in enumerate(zip(self.projections, features.stages_BDhw, strict=True)):
            tokens_BND = _tokens(map_BDhw, features.grid, features.kept_BN)
            fused_BND = fused_BND + shares[number] * projection(tokens_BND)
        return replace(features, tokens_BND=self.norm(fused_BND), stages_BDhw=())


def fused_stages(encoder: EncoderSpec, stages: Sequence[int]) -> tuple[int, ...]:
    """The stages that HEAD.stages names, counted from 0, without the last one, which stands for the encoder's tokens.

    Raises ValueError for a stage that does not exist or is named twice.
    """
    count = len(encoder.stages)
    for stage in stages:
        if not -count <= stage < count:
            strides = ", ".join(str(each.stride) for each in encoder.stages)
            exist = f"0 to {count - 1} (of strides {strides}), or -{count} to -1" if count else "none"
            raise ValueError(
                f"HEAD.stages {list(stages)}: this encoder has no stage {stage}; it has {exist}. HEAD.stages [] reads "
                "the encoder's last tokens alone"
            )
    numbers = [stage % count for stage in stages]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"HEAD.stages {list(stages)} names a stage twice")
    return tuple(number for number in sorted(numbers) if number != count - 1)


def _tokens(map_BDhw: Tensor, grid: tuple[int, int], kept_BN: Tensor | None) -> Tensor:
    """A map on another grid, as tokens (B, N, D): those of the whole grid, or the kept ones."""
    fine, coarse = map_BDhw.shape[2] // grid[0], grid[0] // map_BDhw.shape[2]
    if fine > 1:
        map_BDhw = reduce(map_BDhw, "b d (h p) (w q) -> b d h w", "mean", p=fine, q=fine)
    elif coarse > 1:
        map_BDhw = repeat(map_BDhw, "b d h w -> b d (h p) (w q)", p=coarse, q=coarse)
    tokens_BND = rearrange(map_BDhw, "b d h w -> b (h w) d")
    return (
        tokens_BND if kept_BN is None else tokens_BND.gather(1, kept_BN[..., None].expand(-1, -1, tokens_BND.shape[2]))
    )
