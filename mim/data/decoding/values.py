"""Pixel values that no model can compute with: an image that has one counts as broken, for whoever reads it.

Shapes: C channels, H W pixels.
"""

from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.settings import LARGEST_PIXEL
from mim.data.sources.base import Stored


def check_values(stored: Stored) -> Stored:
    """The image. Raises BrokenImage where a pixel of an image of floats is NaN, infinite, or beyond +-1e18."""
    if not isinstance(stored, Tensor) or not stored.is_floating_point() or not stored.numel():
        return stored
    low, high = (float(value) for value in stored.aminmax())
    if low >= -LARGEST_PIXEL and high <= LARGEST_PIXEL:  # false for NaN, which aminmax passes on
        return stored
    count = stored.numel() - int(stored.isfinite().sum())
    if count:
        raise BrokenImage(f"{count:,} of its {stored.numel():,} pixel values are not finite (NaN or infinity)")
    raise BrokenImage(f"its pixel values go from {low:.3g} to {high:.3g}, and float32 has no square of those")
