"""Resizing of images before they are packed: to a short side, or to one size for all (bicubic, antialiased).

Shapes: C channels, H W pixels.
"""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from mim.data.sources.base import Stored, size_of
from mim.data.transforms import STRIP, to_tensor, without_ends


def reduce_to_short_side(image: Stored, short_side: int) -> Stored:
    """The image with its shorter side reduced to that many pixels; a smaller image, or with 0 any, as it is."""
    height, width = size_of(image)
    shorter = min(height, width)
    if not short_side or shorter <= short_side:
        return image
    size = round(height * short_side / shorter), round(width * short_side / shorter)
    if isinstance(image, Image.Image):
        return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return _resized(image, size)


def fit_to_size(image: Stored, size: tuple[int, int]) -> Stored:
    """The centre of the image with that height and width: resized until it just covers them, then cropped."""
    if isinstance(image, Tensor):
        image = without_ends(image, STRIP * max(size) // min(size))
    (height, width), (rows, columns) = size_of(image), size
    factor = max(rows / height, columns / width)
    covering = round(height * factor), round(width * factor)
    top, left = (covering[0] - rows) // 2, (covering[1] - columns) // 2
    if isinstance(image, Tensor):
        return _resized(image, covering)[:, top : top + rows, left : left + columns]
    box = (  # the same as cropping afterwards, because filters see beyond a box
        left * width / covering[1],
        top * height / covering[0],
        (left + columns) * width / covering[1],
        (top + rows) * height / covering[0],
    )
    return image.resize((columns, rows), Image.Resampling.BICUBIC, box)


def around_gaps(image: Stored, nodata: float | None, resize: Callable[[Stored], Stored]) -> Stored:
    """An image that `resize` makes smaller, where pixels that it computes from missing ones are missing, too.

    nodata: the value of missing pixels, before and after; None for none. NaN spreads by itself.
    """
    if nodata is None:
        return resize(image)
    image_CHW = to_tensor(image)
    values_CHW = image_CHW.float()
    lacking_CHW = values_CHW == torch.tensor(nodata, dtype=torch.float32)
    resized_CHW = to_tensor(resize(values_CHW.masked_fill(lacking_CHW, torch.nan)))
    return _as_type(resized_CHW.masked_fill(resized_CHW.isnan(), nodata), image_CHW.dtype)


def _resized(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    resized_CHW = torch.nn.functional.interpolate(image_CHW.float()[None], size, mode="bicubic", antialias=True)[0]
    return _as_type(resized_CHW, image_CHW.dtype)


def _as_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as whole numbers, rounded and cut off, where the type has no others."""
    if dtype.is_floating_point:
        return values
    return values.round().clamp(0, torch.iinfo(dtype).max).to(dtype)
