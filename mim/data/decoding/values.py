"""Pixel values that no model can compute with: an image that has one counts as broken, for whoever reads it.

Shapes: C channels, H W pixels.
"""

from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Stored

# of a pixel: squares of much larger numbers are infinite in float32, as that of -3.4e38, a common no-data value
LARGEST = 1e18


def check_values(stored: Stored) -> Stored:
    """The image. Raises BrokenImage where a pixel of an image of floats is NaN, infinite, or beyond +-1e18."""
    if not isinstance(stored, Tensor) or not stored.is_floating_point() or not stored.numel():
        return stored
    low, high = (float(value) for value in stored.aminmax())
    if low >= -LARGEST and high <= LARGEST:  # false for NaN, which aminmax passes on
        return stored
    count = stored.numel() - int(stored.isfinite().sum())
    if count:
        raise BrokenImage(f"{count:,} of its {stored.numel():,} pixel values are not finite (NaN or infinity)")
    raise BrokenImage(f"its pixel values go from {low:.3g} to {high:.3g}, and float32 has no square of those")
