"""The held-out share of a data set without held-out images. A hash of its name decides for each image.

So an image that is added or removed moves no other image.
"""

import zlib
from collections.abc import Iterable

import numpy as np

from mim.data.sources.base import Split


def check_share(val_share: float) -> None:
    """Raises ValueError where DATA.val_share is not a share."""
    if not 0 <= val_share < 1:
        raise ValueError(f"DATA.val_share is {val_share}: it is a share, from 0 up to but not including 1")


def hashes(names: Iterable[bytes]) -> np.ndarray:
    """The CRC-32 of each name, (N,) uint32."""
    return np.fromiter(map(zlib.crc32, names), np.uint32)


def by_share(hash_N: np.ndarray, share: float, split: Split) -> np.ndarray:
    """The positions of a split's images, in order. At least one image is held out, unless the share is 0.

    Args:
        hash_N: CRC-32 of each name.
        share: DATA.val_share.
        split: the split to choose.
    """
    number_N = hash_N / 2**32
    is_held_out_N = number_N < share
    if share and not is_held_out_N.any():
        is_held_out_N = number_N == number_N.min()  # all of one name, which a list may repeat
    return np.flatnonzero(is_held_out_N if split == "val" else ~is_held_out_N)
