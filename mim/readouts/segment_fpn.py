"""SegmentFPN: a light feature pyramid network for segmentation.

Shapes: B batch, D channels, K outputs, h w entries high and wide.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mim.readouts.pyramid import ConvNormReLU
from mim.readouts.segmentation import Segmentation, pyramid_of, resized
from mim.structures import EncoderSpec, Features


class SegmentFPN(Segmentation, name="segment_fpn"):
    """Coarse maps are added to fine ones on the way down; then each comes up to the finest, and all are summed.

    Each level passes a 1x1 convolution to `channels`, and gets the coarser level added (nearest). On the way up a 3x3
    convolution, GroupNorm and ReLU stand before each enlargement (bilinear) to the size of the next finer level; the
    finest level has them once.

    Source: Panoptic FPN (Kirillov et al., arXiv:1901.02446), the semantic branch; detectron2, SemSegFPNHead. Differs
    from: `channels` in the pyramid too, which has 256 there; without the pyramid's own 3x3 convolutions, since those of
    the branch follow with nothing between; strides of the encoder, also where the finest is not 4.

    Args:
        stages: numbers of the stages, from 0, or from the end with -1 for the last, which is the encoder's output; `[]`
            is the last stage of each of the four coarsest strides, or four evenly spaced stages of an encoder of one
            stride. Stages of one stride are resized to a quarter, a half, one and two times that stride.
        channels: of each level, a multiple of 4.
        dropout: share of the channels that a training step sets to 0 before the last layer. mmsegmentation: 0.1.

    Raises ValueError for a stage that the encoder does not have, and for more than four stages of one stride.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        outputs: int,
        *,
        stages: tuple[int, ...] = (),
        channels: int = 128,
        dropout: float = 0.0,
    ):
        pyramid = pyramid_of(encoder, stages, channels)
        super().__init__(encoder, outputs, pyramid.maps, channels, dropout)
        self.pyramid = pyramid
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in pyramid.widths)
        self.up = nn.ModuleList(
            nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in range(max(1, level)))
            for level in range(len(pyramid.widths))
        )

    def forward(self, features: Features) -> Tensor:
        maps = [lateral(map_BDhw) for lateral, map_BDhw in zip(self.lateral, self.pyramid(features), strict=True)]
        for level in range(len(maps) - 1, 0, -1):
            coarse_BDhw = F.interpolate(maps[level], size=maps[level - 1].shape[-2:], mode="nearest")
            maps[level - 1] = maps[level - 1] + coarse_BDhw
        sum_BDhw = self.up[0][0](maps[0])  # type: ignore[index]
        for level in range(1, len(maps)):
            sum_BDhw = sum_BDhw + self._brought_up(level, maps)
        return self.predict(self.dropout(sum_BDhw))

    def _brought_up(self, level: int, maps: list[Tensor]) -> Tensor:
        """The map of a level at the size of the finest one."""
        map_BDhw = maps[level]
        for conv, finer_BDhw in zip(self.up[level], reversed(maps[:level]), strict=True):  # type: ignore[call-overload]
            map_BDhw = resized(conv(map_BDhw), finer_BDhw)
        return map_BDhw
