"""Pyramid: maps of an encoder at several strides, also of an encoder that has one stride.

Shapes: B batch, D width, h w entries high and wide.
"""

import math

from torch import Tensor, nn

from mim.readouts.encoder_maps import LEVELS, EncoderMaps
from mim.structures import Features

MOST_GROUPS = 32  # of GroupNorm, as published
LEAST_CHANNELS = 4  # of a group, so that a map of one entry has a variance


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or with groups of 4 channels where that are fewer; `channels` is a multiple of 4.

    Not BatchNorm: segmentation runs with few images on a device, and pooled to one entry a batch of one image has no
    variance, so that BatchNorm refuses it. GroupNorm computes the same whatever the batch, in training and evaluation.
    """
    return nn.GroupNorm(math.gcd(MOST_GROUPS, channels // LEAST_CHANNELS), channels)


class ConvNormReLU(nn.Sequential):
    """A convolution without bias that keeps height and width, GroupNorm and ReLU."""

    def __init__(self, source: int, channels: int, kernel: int):
        conv = nn.Conv2d(source, channels, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, group_norm(channels), nn.ReLU())


class Pyramid(nn.Module):
    """Maps of several strides, the finest first; `widths` are their channels.

    Maps of different strides stay as they are. Maps of one stride become four, of a quarter, a half, one and two times
    that stride: by transposed convolutions that learn what lies between the entries, or by max pooling. Fewer than four
    are read several times. No map is finer than a pixel.

    Source: BEiT and MAE, semantic segmentation with UPerNet (two, one and no transposed convolution, max pooling).
    Differs from: transposed convolutions give `channels` and not the encoder's width, as those of ViTDet
    (arXiv:2203.16527) narrow, for a readout has to stay light; GroupNorm between the two, see group_norm.

    Args:
        maps: of the encoder.
        channels: of a map that is enlarged.

    Raises ValueError for more than four maps of one stride.
    """

    def __init__(self, maps: EncoderMaps, channels: int):
        super().__init__()
        self.maps, specs = maps, maps.specs
        self.sources = list(range(len(specs)))  # the map that each level reads
        self.widths = [spec.width for spec in specs]
        self.resize = nn.ModuleList(nn.Identity() for _ in specs)
        if len({spec.stride for spec in specs}) > 1:
            return
        if len(specs) > LEVELS:
            raise ValueError(
                f"READOUT.stages names {len(specs)} stages of one stride, {specs[0].stride}: name at most {LEVELS}, "
                "from which the levels of the pyramid are made"
            )
        finest = int(math.log2(specs[0].stride))
        doublings = [min(2, finest), min(1, finest), 0, -1]
        self.sources = [-(-(level + 1) * len(specs) // LEVELS) - 1 for level in range(LEVELS)]
        self.resize = nn.ModuleList(
            _resize(specs[source].width, channels, steps) for source, steps in zip(self.sources, doublings, strict=True)
        )
        self.widths = [
            channels if steps > 0 else specs[source].width
            for source, steps in zip(self.sources, doublings, strict=True)
        ]

    def forward(self, features: Features) -> list[Tensor]:
        maps = self.maps.read(features)
        return [resize(maps[source]) for source, resize in zip(self.sources, self.resize, strict=True)]


def _resize(width: int, channels: int, doublings: int) -> nn.Module:
    """Doubles height and width as often, from `width` to `channels`; -1 halves them and rounds up."""
    if doublings < 0:
        return nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number:
            layers += [group_norm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels if number else width, channels, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
