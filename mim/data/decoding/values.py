"""What a source may give: the kind of an image, and pixel values that a model can compute with.

Shapes: C channels, H W pixels.
"""

import torch
from PIL import Image
from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.settings import LARGEST_PIXEL, DataSettings
from mim.data.sources.base import Stored


def wrong_kind(stored: object, channels: int) -> str:
    """What a source gives, where that is no image of that many channels in a stored type; empty where it is one.

    No file can cause it, only a mistake in a source: so the image does not count as broken.
    """
    if isinstance(stored, Image.Image):
        right, kind = len(stored.getbands()) == channels, f"a PIL image of mode {stored.mode}"
    elif isinstance(stored, Tensor):
        number = stored.is_floating_point() or stored.dtype in (torch.uint8, torch.uint16)
        right = number and stored.ndim == 3 and len(stored) == channels
        kind = f"a tensor {tuple(stored.shape)} of {str(stored.dtype).removeprefix('torch.')}"
    else:
        right, kind = False, f"an object of type {type(stored).__module__}.{type(stored).__qualname__}"
    return "" if right else kind


def check_values(stored: Stored, settings: DataSettings) -> Stored:
    """The image.

    Raises BrokenImage where a pixel of an image of floats is infinite or beyond +-1e18, where all pixels are missing,
    and where some are and DATA.missing is `broken`.
    """
    if not isinstance(stored, Tensor) or not stored.is_floating_point() or not stored.numel():
        return stored
    low, high = (float(value) for value in stored.aminmax())
    if low >= -LARGEST_PIXEL and high <= LARGEST_PIXEL:  # false for NaN, which aminmax passes on
        return stored
    present_N = stored[~stored.isnan()]
    if settings.nodata_value is not None:
        present_N = present_N[present_N != torch.tensor(settings.nodata_value, dtype=present_N.dtype)]
    missing = stored.numel() - len(present_N)
    if missing == stored.numel():
        raise BrokenImage("all of its pixels are missing (NaN, or DATA.nodata)")
    if missing and settings.missing == "broken":
        raise BrokenImage(f"{missing:,} of its {stored.numel():,} pixel values are missing, and DATA.missing is broken")
    if infinite := int(present_N.isinf().sum()):
        raise BrokenImage(f"{infinite:,} of its {stored.numel():,} pixel values are infinite")
    low, high = (float(value) for value in present_N.aminmax())
    if low < -LARGEST_PIXEL or high > LARGEST_PIXEL:
        raise BrokenImage(f"its pixel values go from {low:.3g} to {high:.3g}, and float32 has no square of those")
    return stored
