"""SegmentUPerNet: UPerNet, pyramid pooling of the coarsest map and a feature pyramid network.

Shapes: B batch, D channels, K outputs, h w entries high and wide.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.readouts.pyramid import ConvNormReLU
from mim.readouts.segmentation import Segmentation, pyramid_of, resized
from mim.structures import EncoderSpec, Features

BINS = (1, 2, 3, 6)  # entries high and wide, to which the coarsest map is pooled


class SegmentUPerNet(Segmentation, name="segment_upernet"):
    """The decoder by which MAE and BEiT are judged on ADE20K, at a width of your choice.

    The coarsest map is pooled to 1, 2, 3 and 6 entries a side; these and the map itself are concatenated and fused.
    Each finer level gets the coarser one added (bilinear). All levels, brought to the finest, are concatenated and
    fused.

    Source: UPerNet (Xiao et al., arXiv:1807.10221), with mmsegmentation's UPerHead. Differs from: GroupNorm in place of
    BatchNorm shared by devices, for small batches (mim/readouts/pyramid.py says why); 256 channels by default, which
    are 512 there and 768 in MAE's and BEiT's ViT-B; no auxiliary head.

    Args:
        stages: numbers of the stages, from 0, or from the end with -1 for the last, which is the encoder's output; `[]`
            is the last stage of each of the four coarsest strides, or four evenly spaced stages of an encoder of one
            stride. Stages of one stride are resized to a quarter, a half, one and two times that stride.
        channels: of each level, a multiple of 4.
        dropout: share of the channels that a training step sets to 0 before the last layer.

    Raises ValueError for a stage that the encoder does not have, and for more than four stages of one stride.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        outputs: int,
        *,
        stages: tuple[int, ...] = (),
        channels: int = 256,
        dropout: float = 0.1,
    ):
        pyramid = pyramid_of(encoder, stages, channels)
        super().__init__(encoder, outputs, pyramid.maps, channels, dropout)
        *finer, coarsest = pyramid.widths
        self.pyramid = pyramid
        self.pooled = nn.ModuleList(ConvNormReLU(coarsest, channels, 1) for _ in BINS)
        self.bottleneck = ConvNormReLU(coarsest + len(BINS) * channels, channels, 3)
        self.lateral = nn.ModuleList(ConvNormReLU(width, channels, 1) for width in finer)
        self.smooth = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in finer)
        self.fuse = ConvNormReLU(len(pyramid.widths) * channels, channels, 3)

    def forward(self, features: Features) -> Tensor:
        *finer, coarsest_BDhw = self.pyramid(features)
        maps = [lateral(map_BDhw) for lateral, map_BDhw in zip(self.lateral, finer, strict=True)]
        maps.append(self._with_context(coarsest_BDhw))
        for level in range(len(maps) - 1, 0, -1):
            maps[level - 1] = maps[level - 1] + resized(maps[level], maps[level - 1])
        levels = [smooth(map_BDhw) for smooth, map_BDhw in zip(self.smooth, maps[:-1], strict=True)]
        levels.append(maps[-1])
        map_BDhw = self.fuse(torch.cat([resized(level_BDhw, levels[0]) for level_BDhw in levels], dim=1))
        return self.predict(self.dropout(map_BDhw))

    def _with_context(self, map_BDhw: Tensor) -> Tensor:
        """The coarsest map, fused with what lies around each entry, near and far."""
        contexts = [
            resized(conv(F.adaptive_avg_pool2d(map_BDhw, bins)), map_BDhw)
            for conv, bins in zip(self.pooled, BINS, strict=True)
        ]
        return self.bottleneck(torch.cat([map_BDhw, *contexts], dim=1))
