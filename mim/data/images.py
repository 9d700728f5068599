"""Decoding one image file.

Shapes: C channels, H W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mim.data.base import Enough, Stored, sides
from mim.data.jpeg import decode_needed, factor, read_header

PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"])
EXTENSIONS = PICTURES | {".npy"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BrokenImage(Exception):
    """An image that cannot be read; its text is the reason."""


def decode(file: Path | bytes, channels: int) -> Stored:
    """An 8-bit PIL image, or a tensor (C, H, W) for numpy arrays and 16-bit pictures, with `channels` channels.

    file: its path or its content. A numpy array is (H, W), (H, W, C) or (C, H, W), of uint8, uint16 or any float type;
    where both ends have the right number of channels, the last axis is taken. Raises BrokenImage, whatever a decoder
    trips over.
    """
    with _broken():
        return _array(file, channels) if _is_array(file) else _picture(file, channels)


def decode_reduced(file: Path | bytes, channels: int, enough: Enough) -> tuple[Stored, tuple[int, int]]:
    """As decode, perhaps smaller or without its lowest rows, and the height and width that the file has.

    The sides of a JPEG file are divided by the largest of 2, 4 and 8 that `enough` allows. One that keeps its width is
    a uint8 tensor (C, H, W) with the very pixels of the picture that decode gives, where a decoder makes one directly.
    """
    with _broken():
        if _is_array(file):
            array_CHW = _array(file, channels)
            return array_CHW, sides(array_CHW)
        content = np.fromfile(file, np.uint8).data if isinstance(file, Path) else bytearray(file)
        header = read_header(content)
    if header is None:
        with _broken():
            image = _picture(file, channels)
            return image, sides(image)
    size = header.height, header.width
    need = enough(*size)  # outside _broken: a mistake in it is no damage of the file
    with _broken():
        stored = decode_needed(content, header, channels, need)
        if stored is None:  # Pillow reads it all the same, or says what is wrong
            stored = _picture(file, channels, factor(need))
        return stored, size


def check_channels(channels: int) -> None:
    """Raises ValueError where no picture has that many channels."""
    if channels not in MODES:
        raise ValueError(f"DATA.channels is {channels}: a picture has {', '.join(map(str, MODES))}")


def to_mode(picture: Image.Image, channels: int) -> Image.Image:
    """An 8-bit picture with that many channels: grey, RGB or RGBA."""
    if channels not in MODES:
        raise BrokenImage(f"a picture has 1, 3 or 4 channels and DATA.channels is {channels}: use .npy arrays")
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


@contextmanager
def _broken() -> Iterator[None]:
    """Whatever goes wrong inside becomes a BrokenImage."""
    try:
        yield
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise a dozen unrelated types on damaged files
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def _is_array(file: Path | bytes) -> bool:
    return file.startswith(b"\x93NUMPY") if isinstance(file, bytes) else file.suffix.lower() == ".npy"


def _opened(file: Path | bytes) -> Path | BytesIO:
    return BytesIO(file) if isinstance(file, bytes) else file


def _picture(file: Path | bytes, channels: int, by: int = 1) -> Stored:
    """by: what the sides of a JPEG file are divided by."""
    with Image.open(_opened(file)) as picture:
        if by > 1:
            picture.draft(None, (picture.width // by, picture.height // by))
        return _pixels(picture, channels)


def _pixels(picture: Image.Image, channels: int) -> Stored:
    picture.load()
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return to_mode(picture, channels)
    grey_HW = np.asarray(picture)  # grey scale of 16 bits or of floats, as microscopes write it
    if picture.mode != "F":
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise BrokenImage(f"levels from {grey_HW.min()} to {grey_HW.max()}: 16 bits are read; use .npy arrays")
        grey_HW = grey_HW.astype(np.uint16)
    return torch.from_numpy(np.repeat(grey_HW[None], channels, axis=0))


def _array(file: Path | bytes, channels: int) -> Tensor:
    array = np.load(_opened(file), allow_pickle=False)
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
