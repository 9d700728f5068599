"""A plugin: a ViT that overflows, as in low precision, at an image with a pixel larger than a million.

Shapes: B batch, C channels, H W pixels.
"""

import torch
from torch import Tensor

from mim.encoders import ViT
from mim.structures import Features, PatchMask

FRAGILE = {"ENCODER.name": "fragile", "PLUGINS": "[fragile_encoder]"}


class Fragile(ViT, name="fragile"):
    """See the file."""

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        overflows_B111 = img_BCHW.amax(dim=(1, 2, 3), keepdim=True) > 1e6
        return super().forward(torch.where(overflows_B111, torch.nan, img_BCHW), mask)
