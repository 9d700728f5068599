"""Truncated normal initial weights, without the outliers that the usual way of drawing them makes."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mim.ops.seeding import generator_for

FARTHEST = 6.0  # standard deviations. A float32 draw has 24 bits, so its last value before infinity is 5.3 away


@torch.no_grad()
def trunc_normal_(weight: Tensor, std: float, cut: float = 2.0) -> Tensor:
    """Fills a weight from the normal distribution with mean 0, cut at +-cut, as nn.init.trunc_normal_, and returns it.

    Differs from: see redraw_clamped_.
    """
    nn.init.trunc_normal_(weight, std=std, a=-cut, b=cut)
    if cut > FARTHEST * std:
        redraw_clamped_([weight], std)
    return weight


@torch.no_grad()
def redraw_clamped_(weights: Iterable[Tensor], std: float) -> None:
    """Draws again, in place, what timm's trunc_normal_ (and that of older PyTorch) clamped to its far bound.

    They draw by erfinv. One number in some 2^24 is exactly -1 before it, minus infinity after it, and the bound after
    the clamp: -2, which is 100 standard deviations of .02. All other weights and the global generator stay as they are:
    the new weights are a function of its seed and of their positions.
    """
    for weight in weights:
        if weight.is_meta or not weight.numel():
            continue
        low, high = weight.aminmax()
        if max(-low, high) <= FARTHEST * std:
            continue
        clamped = weight.abs() > FARTHEST * std
        positions = clamped.flatten().nonzero().flatten().tolist()
        generator = generator_for(torch.device("cpu"), torch.initial_seed(), "redraw", weight.numel(), *positions)
        drawn = torch.empty(len(positions)).normal_(std=std, generator=generator)
        weight[clamped] = drawn.to(weight)
