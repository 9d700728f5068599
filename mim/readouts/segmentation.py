"""Segmentation: what the readouts share that answer a class for each entry of a map.

Shapes: B batch, D channels, K outputs, h w entries high and wide.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mim.readouts.base import Readout
from mim.readouts.encoder_maps import EncoderMaps
from mim.readouts.pyramid import LEAST_CHANNELS, Pyramid
from mim.structures import EncoderSpec, LabelKind

INIT_STD = 0.01  # of the last layer, in mmsegmentation and DINOv3


class Segmentation(Readout):
    """A readout for masks, which ends with dropout of whole channels and a convolution of one entry.

    Args:
        maps: of the encoder, what the readout reads.
        channels: of the map that the last convolution reads.
        dropout: share of the channels that a training step sets to 0, from 0 up to but not including 1.
    """

    kinds: ClassVar[tuple[LabelKind, ...]] = ("mask",)

    def __init__(self, encoder: EncoderSpec, outputs: int, maps: EncoderMaps, channels: int, dropout: float):
        super().__init__(encoder, outputs, maps.stages)
        if not 0 <= dropout < 1:
            raise ValueError(f"READOUT.dropout is {dropout}: it is a share, from 0 up to but not including 1")
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(channels, outputs, kernel_size=1)
        nn.init.normal_(self.predict.weight, std=INIT_STD)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]


def pyramid_of(encoder: EncoderSpec, stages: tuple[int, ...], channels: int) -> Pyramid:
    """The pyramid that READOUT.stages and READOUT.channels ask for; `()` is four maps.

    Raises ValueError for channels that have no groups of 4.
    """
    if channels < LEAST_CHANNELS or channels % LEAST_CHANNELS:
        raise ValueError(f"READOUT.channels is {channels}: use a multiple of {LEAST_CHANNELS}")
    return Pyramid(EncoderMaps.named(encoder, stages) if stages else EncoderMaps.four(encoder), channels)


def resized(map_BDhw: Tensor, other_BDhw: Tensor) -> Tensor:
    """A map at the height and width of another one, bilinear, with corners as in all segmentation readouts."""
    size = other_BDhw.shape[-2:]
    if map_BDhw.shape[-2:] == size:
        return map_BDhw
    return F.interpolate(map_BDhw, size=size, mode="bilinear", align_corners=False)
