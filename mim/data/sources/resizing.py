"""Resizing of images before they are packed: to a short side, or to one size for all (bicubic, antialiased).

Shapes: C channels, H W pixels.
"""

import torch
from PIL import Image
from torch import Tensor

from mim.data.sources.base import Stored, size_of
from mim.data.transforms import STRIP, without_ends


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


def _resized(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    resized_CHW = torch.nn.functional.interpolate(image_CHW.float()[None], size, mode="bicubic", antialias=True)[0]
    if image_CHW.is_floating_point():
        return resized_CHW
    return resized_CHW.round().clamp(0, torch.iinfo(image_CHW.dtype).max).to(image_CHW.dtype)
