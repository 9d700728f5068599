"""Which images are held out where a data set has none of its own: a share, chosen by a hash of their names.

So an image that joins or leaves a data set moves no other.
"""

import numpy as np

from mim.data.sources.base import Split


def check_share(val_share: float) -> None:
    """Raises ValueError where it is no share."""
    if not 0 <= val_share < 1:
        raise ValueError(f"DATA.val_share is {val_share}: it is a share, from 0 up to but not including 1")


def by_share(hash_N: np.ndarray, share: float, split: Split) -> np.ndarray:
    """The places of a split's images, in order; at least one is held out, unless the share is 0.

    hash_N: CRC-32 of each name.
    """
    chance_N = hash_N / 2**32
    held_N = chance_N < share
    if share and not held_N.any():
        held_N = chance_N == chance_N.min()  # all of one name, which a list may repeat
    return np.flatnonzero(held_N if split == "val" else ~held_N)
