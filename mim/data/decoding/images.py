"""Decoding of one image file. A file may hold anything; one that is no image is refused before it takes memory.

EXIF's orientation has no effect (TIFF's own has). An alpha channel that DATA.channels does not include is dropped, not
blended. Of several frames or pages the first is read. Pillow reduces 16-bit colours to 8 bits.
Shapes: C channels, H W pixels.
"""

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mim.data.decoding.jpeg import decode_needed, factor, read_header
from mim.data.decoding.names import printable_name
from mim.data.sources.base import NeedOf, Stored, size_of

PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"])
EXTENSIONS = PICTURES | {".npy"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# the formats of Pillow that are read; some of its others start programs
FORMATS = frozenset(["JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF"])


class BrokenImage(Exception):
    """An image that cannot be read; its text is the reason."""


def decode(file: Path | bytes, channels: int) -> Stored:
    """An 8-bit PIL image, or a tensor (C, H, W) for numpy arrays and 16-bit pictures.

    A numpy array is (H, W), (H, W, C) or (C, H, W), of uint8, uint16 or a float type. Where the first and the last axis
    both have `channels` entries, the last one is taken as the channels.

    Args:
        file: its path or its content.
        channels: of the result.

    Raises BrokenImage for every error of a decoder.
    """
    with _broken():
        if _is_array(file):
            return _array(file, channels)
        with _open(file) as stream:
            return _picture(stream, channels)


def decode_reduced(file: Path | bytes, channels: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
    """As decode, perhaps smaller or without its lowest rows, and the height and width of the image in the file.

    The sides of a JPEG file are divided by the largest of 2, 4 and 8 that `need_of` allows. Where they are not divided,
    the result may be a uint8 tensor (C, H, W) with the same pixels as the picture that decode gives.
    """
    with _broken():
        if _is_array(file):
            array_CHW = _array(file, channels)
            return array_CHW, size_of(array_CHW)
        with _open(file) as stream:
            content = bytearray(stream.read())
        header = read_header(content)
        if header is None:
            image = _picture(BytesIO(content), channels)
            return image, size_of(image)
    size = header.height, header.width
    need = need_of(*size)  # outside _broken: an error in it is no damage of the file
    with _broken():
        stored = decode_needed(content, header, channels, need)
        if stored is None:  # Pillow may still read it, or says what is wrong
            struct.pack_into(">H", content, header.frame + 5, header.height)  # as it was
            stored = _picture(BytesIO(content), channels, factor(need))
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
    except UnidentifiedImageError as error:  # its own text is an address in memory
        raise BrokenImage("UnidentifiedImageError: its format is not one that is read") from error
    except Exception as error:  # decoders raise a dozen unrelated types on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error  # without the name again
        raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error


def _is_array(file: Path | bytes) -> bool:
    return file.startswith(b"\x93NUMPY") if isinstance(file, bytes) else file.suffix.lower() == ".npy"


def _open(file: Path | bytes) -> BinaryIO:
    """A stream from the beginning of the file. Without its name, so that Pillow does not map it into memory.

    Raises BrokenImage at once for a folder, a pipe or a device.
    """
    if isinstance(file, bytes):
        return BytesIO(file)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BrokenImage("it is a folder, a pipe or a device, and no file")
    return os.fdopen(descriptor, "rb")


def _picture(file: BinaryIO, channels: int, by: int = 1) -> Stored:
    """by: the number that divides the sides of a JPEG file."""
    with Image.open(file, formats=_formats()) as picture:
        if by > 1:
            picture.draft(None, (picture.width // by, picture.height // by))
        return _pixels(picture, channels)


@cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this Pillow reads, the common ones first."""
    Image.init()
    return tuple(sorted(FORMATS & set(Image.OPEN), key=lambda name: (name not in ("JPEG", "PNG"), name)))


def _pixels(picture: Image.Image, channels: int) -> Stored:
    picture.load()
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return to_mode(picture, channels)
    grey_HW = np.asarray(picture)  # grey levels of 16 bits or floats, as microscopes write them
    if picture.mode != "F":
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise BrokenImage(f"levels from {grey_HW.min()} to {grey_HW.max()}: 16 bits are read; use .npy arrays")
        grey_HW = grey_HW.astype(np.uint16)
    return torch.from_numpy(np.repeat(grey_HW[None], channels, axis=0))


def _array(file: Path | bytes, channels: int) -> Tensor:
    with _open(file) as stream:
        _check_array_size(stream, len(file) if isinstance(file, bytes) else os.fstat(stream.fileno()).st_size)
        array = np.load(stream, allow_pickle=False)
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


def _check_array_size(file: BinaryIO, size: int) -> None:
    """Raises BrokenImage where the header describes an array larger than the file, before it takes memory."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # others are for fields with names
        raise BrokenImage(f"an array file of version {version}: 1 and 2 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    needed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (needed > size - file.tell() and not dtype.hasobject):
        raise BrokenImage(f"the array is incomplete: shape {shape}, {needed:,} bytes, in a file of {size:,}")
    file.seek(0)
