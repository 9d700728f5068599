"""Resizing whole images before they are packed: to a short side, or to one size for all (bicubic, antialiased).

Shapes: C channels, H W pixels.
"""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from mim.data.sources.base import Stored, size_of

STRIP = 100  # times as long, for its width, as what is cut out of its middle


def shrunk(image: Stored, short_side: int) -> Stored:
    """The image reduced until its shorter side has that many pixels; a smaller one as it is."""
    height, width = size_of(image)
    shorter = min(height, width)
    if not short_side or shorter <= short_side:
        return image
    size = round(height * short_side / shorter), round(width * short_side / shorter)
    if isinstance(image, Image.Image):
        return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return _resized(image, size)


def fitted(image: Stored, size: tuple[int, int]) -> Stored:
    """The centre of the image, in that height and width: reduced or enlarged until it just covers them, and cut."""
    (height, width), (rows, columns) = size_of(image), size
    if isinstance(image, Tensor):  # what is cut off a strip would else be made first, and take gigabytes
        longest = STRIP * max(size) // min(size) * min(height, width)
        image = center_crop(image, [min(height, longest), min(width, longest)])
        height, width = size_of(image)
    by = max(rows / height, columns / width)
    covering = round(height * by), round(width * by)
    top, left = (covering[0] - rows) // 2, (covering[1] - columns) // 2
    if isinstance(image, Tensor):
        return _resized(image, covering)[:, top : top + rows, left : left + columns]
    box = (  # as cutting afterwards, without making what is cut off: filters see beyond a box
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
