"""Nearest pixels: which stored pixel lies under the middle of each pixel of a crop, for masks of classes.

Shapes: H W rows and columns of a crop, N pixels along a side, S pixels along a stored side.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """The stored row of each row of a crop, and the stored column of each of its columns, int64."""

    row_H: Tensor
    column_W: Tensor


def moved(image: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """An image whose pixels `move` puts elsewhere, in any stored type: older PyTorch flips and indexes no uint16."""
    return move(image.view(torch.int16)).view(torch.uint16) if image.dtype == torch.uint16 else move(image)


def nearest(length: int, count: int, start: int = 0) -> Tensor:
    """The pixels of start to start + length that lie under the middle of each of `count` equal parts, (count,)."""
    return start + torch.div((2 * torch.arange(count) + 1) * length, 2 * count, rounding_mode="floor")


def centred(side: int, length: int) -> int:
    """Where the middle `length` pixels of a side begin, as in torchvision's center_crop."""
    return round((side - length) / 2.0)


def resized_middle(stored: int, longest: int, resized: int) -> Tensor:
    """The stored pixel of each pixel of a side that was cut to its middle `longest` pixels and resized, (resized,)."""
    kept = min(stored, longest)
    return nearest(kept, resized, centred(stored, kept))


def cropped_middle(stored: int, longest: int, resized: int, count: int) -> Tensor:
    """The other way round, (stored,): the pixel under the middle of each stored one, of `count` in the middle.

    -1 for stored pixels that are not in the crop.
    """
    kept = min(stored, longest)
    inside_S = torch.arange(stored) - centred(stored, kept)
    place_S = (2 * inside_S + 1) * resized // (2 * kept) - centred(resized, count)
    in_crop_S = (inside_S >= 0) & (inside_S < kept) & (place_S >= 0) & (place_S < count)
    return place_S.where(in_crop_S, -1)
