"""Decoding one image file.

Shapes: C channels, H W pixels.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"])
EXTENSIONS = PICTURES | {".npy"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BrokenImage(Exception):
    """An image that cannot be read; its text is the reason."""


def decode(path: Path, channels: int) -> Image.Image | Tensor:
    """An 8-bit PIL image, or a tensor (C, H, W) for numpy arrays and 16-bit pictures, with `channels` channels.

    A numpy array is (H, W), (H, W, C) or (C, H, W), of uint8, uint16 or any float type; where both ends have the
    right number of channels, the last axis is taken. Raises BrokenImage, whatever a decoder trips over.
    """
    try:
        return _array(path, channels) if path.suffix.lower() == ".npy" else _picture(path, channels)
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise a dozen unrelated types on damaged files
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def check_channels(channels: int) -> None:
    """Raises ValueError where no picture has that many channels."""
    if channels not in MODES:
        raise ValueError(f"DATA.channels is {channels}: a picture has {', '.join(map(str, MODES))}")


def to_mode(picture: Image.Image, channels: int) -> Image.Image:
    """An 8-bit picture with that many channels: grey, RGB or RGBA."""
    if channels not in MODES:
        raise BrokenImage(f"a picture has 1, 3 or 4 channels and DATA.channels is {channels}: use .npy arrays")
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def _picture(path: Path, channels: int) -> Image.Image | Tensor:
    with Image.open(path) as picture:
        picture.load()
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return to_mode(picture, channels)
    grey_HW = np.asarray(picture)  # grey scale of 16 bits or of floats, as microscopes write it
    if picture.mode != "F":
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise BrokenImage(f"levels from {grey_HW.min()} to {grey_HW.max()}: 16 bits are read; use .npy arrays")
        grey_HW = grey_HW.astype(np.uint16)
    return torch.from_numpy(np.repeat(grey_HW[None], channels, axis=0))


def _array(path: Path, channels: int) -> Tensor:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] == channels:
        array = np.moveaxis(array, -1, 0)
    elif array.ndim != 3 or array.shape[0] != channels:
        raise BrokenImage(f"an array of shape {array.shape} has no axis of DATA.channels {channels} at either end")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16):
        if not np.issubdtype(array.dtype, np.floating):
            raise BrokenImage(f"an array of {array.dtype}: uint8, uint16 and floats are read")
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array))
