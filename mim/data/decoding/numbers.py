"""The number types in which pixels are stored: uint8, uint16 and float32."""

import numpy as np

from mim.data.decoding.broken import BrokenImage

EXACT = 2**24  # whole numbers up to here are the same as float32


def can_be_stored(dtype: np.dtype) -> bool:
    """Whether pixels of that type are read: whole numbers, truth values and floats."""
    return dtype.kind in "buif"


def to_stored_type(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8 or uint16 where they are, else as float32 of the same numbers; floats are rounded to float32.

    Raises BrokenImage where a whole number is too large to be the same as float32.
    """
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind in "ui" and pixels.size:
        low, high = int(pixels.min()), int(pixels.max())
        if max(-low, high) > EXACT:
            raise BrokenImage(f"levels from {low} to {high}: of whole numbers those up to {EXACT:,} are read")
    with np.errstate(over="ignore"):  # what becomes infinite counts as broken
        return pixels.astype(np.float32)
