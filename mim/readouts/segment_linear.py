"""SegmentLinear: one class for each entry of the encoder's maps, by a BatchNorm and a linear map.

Shapes: B batch, D channels, K outputs, h w entries high and wide.
"""

import torch
from torch import Tensor, nn

from mim.readouts.encoder_maps import EncoderMaps
from mim.readouts.segmentation import Segmentation, resized
from mim.structures import EncoderSpec, Features


class SegmentLinear(Segmentation, name="segment_linear"):
    """What the features of a place tell of its class by themselves: the linear probe of segmentation.

    Several stages are resized to the finest of them (bilinear) and concatenated. BatchNorm, with weights, then brings
    channels of any scale to one, so that one learning rate suits all encoders.

    Source: DINOv3 (arXiv:2508.10104), eval/segmentation/models/heads/linear_head.py; DINOv2 (arXiv:2304.07193),
    eval/segmentation/models/decode_heads/linear_head.py, BNHead, has no dropout. Differs from: statistics of BatchNorm
    are those of each device's images, where both sources' devices share them (SyncBatchNorm); of the encoder's stages,
    the last alone is behind the encoder's norm.

    Args:
        stages: numbers of the stages, from 0, or from the end with -1 for the last, which is the encoder's output; `[]`
            is the output alone. DINOv2's multi-scale head reads the last four blocks of a ViT.
        dropout: share of the channels that a training step sets to 0, ahead of the norm. DINOv3: 0.1, DINOv2: 0.

    Raises ValueError for a stage that the encoder does not have.
    """

    def __init__(self, encoder: EncoderSpec, outputs: int, *, stages: tuple[int, ...] = (), dropout: float = 0.1):
        maps = EncoderMaps.named(encoder, stages)
        width = sum(spec.width for spec in maps.specs)
        super().__init__(encoder, outputs, maps, width, dropout)
        self.maps, self.norm = maps, nn.BatchNorm2d(width)

    def forward(self, features: Features) -> Tensor:
        maps = self.maps.read(features)
        finest_BDhw = max(maps, key=lambda map_BDhw: map_BDhw.shape[-1])
        map_BDhw = torch.cat([resized(map_BDhw, finest_BDhw) for map_BDhw in maps], dim=1)
        return self.predict(self.norm(self.dropout(map_BDhw)))
