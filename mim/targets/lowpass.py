"""Lowpass: pixels of the image without its fine detail (PixMIM).

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target, F frequencies along the width.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from mim.structures import EncoderSpec, ImageSpec
from mim.targets.pixels import Pixels

RADIUS = 40.0


class Lowpass(Pixels, name="lowpass"):
    """Pixels of the image below a spatial frequency, by an ideal filter; then normalised as `pixels` does.

    Source: PixMIM (Liu et al., arXiv:2303.02416), radius 40 at 224 px, with MAE's normalised patches. Differs from its
    code: there the circle is centred half a frequency beside 0, which makes the filtered image complex, and its
    absolute value is taken; here it is centred at 0, so that the filtered image is real.

    Args:
        radius: the highest frequency that stays, in periods an image side; at most half the shorter side. An image that
            is not square keeps an ellipse: as many periods along either side.
    """

    outside: ClassVar[bool] = True  # inductor warns of complex numbers
    low_HF: Tensor

    def __init__(self, image: ImageSpec, encoder: EncoderSpec, *, radius: float = RADIUS, **shared: Any):
        super().__init__(image, encoder, **shared)
        most = min(image.height, image.width) / 2
        if not 0 < radius <= most:
            raise ValueError(
                f"TARGET.radius is {radius:g}: it must be above 0 and at most {most:g}, half the shorter side"
            )
        high_H = torch.fft.fftfreq(image.height, 1 / image.height)
        wide_F = torch.fft.rfftfreq(image.width, 1 / image.width)
        self.register_buffer("low_HF", high_H[:, None] ** 2 + wide_F**2 <= radius**2, persistent=False)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        return super().forward(self._filtered(img_BCHW))

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor:
        return super().to_pixels(map_BChw, self._filtered(img_BCHW))

    def _filtered(self, img_BCHW: Tensor) -> Tensor:
        """The images without higher frequencies, in float32 or wider."""
        wide = torch.promote_types(img_BCHW.dtype, torch.float32)
        spectrum_BCHF = torch.fft.rfft2(img_BCHW.to(wide)) * self.low_HF
        return torch.fft.irfft2(spectrum_BCHF, s=img_BCHW.shape[-2:])
