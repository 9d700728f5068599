"""What the start of a pretraining run says of missing pixels, from a few images.

Shapes: B batch, H W cells.
"""

import torch
from torch import Tensor

from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import missing_pixels
from mim.maskers import Masker
from mim.structures import PatchMask

TRIED = 20  # images


def describe_missing(images: ImageDataset, masker: Masker) -> str:
    """How many of a few images lack pixels, and how much of them; empty where none does, or their type has no NaN.

    images: under the evaluation transform.
    """
    stored = images.stored_type()
    if stored is None or not stored.is_floating_point:
        return ""
    tried = dict.fromkeys(number * len(images) // TRIED for number in range(TRIED))
    stored_BCHW = images.readable([(0, index) for index in tried], mixed=True).images_BCHW
    pixels_BHW = missing_pixels(stored_BCHW) if len(stored_BCHW) else None
    if pixels_BHW is None or not pixels_BHW.any():
        return ""
    share_B = _share_of_cells(pixels_BHW, masker)
    lacking = share_B > 0
    text = (
        f"in {int(lacking.sum())} of {len(share_B)} images that were tried, where {share_B[lacking].mean():.1%} of the "
        "cells have some: hidden, without loss"
    )
    more = int((share_B > masker.ratio).sum())
    return text + f"; in {more} of them more than the masker hides: the model sees the rest as the mean" * (more > 0)


def _share_of_cells(pixels_BHW: Tensor, masker: Masker) -> Tensor:
    """The share of the cells of each image that have missing pixels."""
    nothing_BHW = torch.zeros(len(pixels_BHW), *masker.grid, dtype=torch.bool)
    cells_BHW = PatchMask(nothing_BHW).with_missing(pixels_BHW).missing_BHW
    assert cells_BHW is not None
    return cells_BHW.float().mean(dim=(1, 2))
