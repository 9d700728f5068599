"""HOG: histograms of oriented gradients (MaskFeat).

Shapes: B batch, C channels, H W pixels of the image, h w cells, K bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.structures import EncoderSpec, ImageSpec, TargetSpec
from mim.targets.base import Target


class HOG(Target, name="hog"):
    """Histograms of the orientation of gradients, one for each cell and channel, each of length 1.

    Gradients are those of Sobel, on an image that is mirrored at its border. Each counts with its magnitude, in the bin
    of its direction; opposite directions share a bin. A cell without any gradient has zeros.

    Source: MaskFeat (Wei et al., arXiv:2112.09133); SlowFast, slowfast/models/operators.py, HOGLayerC. There, the
    values of a token have another order.

    Args:
        bins: directions that are told apart, over half a turn.
        cell: side of a cell in pixels; it divides the encoder's stride.
        window: side in pixels of the squares in which gradients count by a Gaussian around the centre, with a standard
            deviation of half the side; it divides the image. 0: all gradients count alike.
    """

    weights_HW: Tensor

    def __init__(self, image: ImageSpec, encoder: EncoderSpec, *, bins: int = 9, cell: int = 8, window: int = 16):
        super().__init__(image, encoder)
        if bins < 2:
            raise ValueError(f"TARGET.bins is {bins}: it must be at least 2")
        image.grid(cell, "TARGET.cell")
        if encoder.stride % cell:
            raise ValueError(
                f"TARGET.cell {cell} does not divide the encoder's stride of {encoder.stride} pixels a token: use "
                f"TARGET.cell {encoder.stride} or another divisor"
            )
        self.spec = TargetSpec(image.channels * bins, cell)
        self.bins, self.cell = bins, cell
        self.register_buffer("weights_HW", self._weights(window), persistent=False)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        wide = torch.promote_types(img_BCHW.dtype, torch.float32)
        across_BCHW, down_BCHW = _gradients(img_BCHW.to(wide))
        magnitude_BCHW = torch.hypot(across_BCHW, down_BCHW) * self.weights_HW
        turns_BCHW = torch.atan2(across_BCHW, down_BCHW) / torch.pi
        bin_BCHW = (turns_BCHW * self.bins).floor() % self.bins
        # eq_ gives floats, and on a CPU a choice by bools takes several times as long
        counts = [self._sum(bin_BCHW.clone().eq_(number).mul_(magnitude_BCHW)) for number in range(self.bins)]
        return F.normalize(torch.stack(counts, dim=2), dim=2).flatten(1, 2)

    def _sum(self, map_BCHW: Tensor) -> Tensor:
        """The sum over each cell, (B, C, h, w)."""
        rows_BChW = map_BCHW.unflatten(-2, (-1, self.cell)).sum(dim=-2)
        return rows_BChW.unflatten(-1, (-1, self.cell)).sum(dim=-1)

    def _weights(self, window: int) -> Tensor:
        """By how much the gradient of each pixel counts, (H, W)."""
        high, wide = self.image.height, self.image.width
        if window == 0:
            return torch.ones(high, wide)
        self.image.grid(window, "TARGET.window")
        offsets = (torch.arange(window) - (window - 1) / 2) / (window / 2)
        falling = torch.exp(-0.5 * offsets**2)
        kernel = torch.outer(falling, falling)
        return (kernel / kernel.sum()).repeat(high // window, wide // window)


def _gradients(img_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's gradients across and down, each (B, C, H, W), of an image that is mirrored at its border.

    By slices: convolutions would be in the precision of matrix products, and are slower for single channels.
    """
    padded = F.pad(img_BCHW, (1, 1, 1, 1), mode="reflect")
    columns = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return columns[..., :-2] - columns[..., 2:], rows[..., :-2, :] - rows[..., 2:, :]
