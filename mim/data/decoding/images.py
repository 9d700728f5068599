"""Decoding of one image file. A file may hold anything; one that is no image is refused before it takes memory.

The pixels are those of the file, or it is refused. What DATA.channels leaves out or adds is said once: an alpha channel
is dropped, not blended, and of several frames the first is read. EXIF's orientation has no effect (TIFF's own has).
Shapes: C channels, H W pixels.
"""

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import UnidentifiedImageError

from mim.data.decoding.broken import BrokenImage, Say, say_each
from mim.data.decoding.dicom import ENDINGS, is_dicom, read_dicom
from mim.data.decoding.geotiff import read_geotiff
from mim.data.decoding.jpeg import decode_needed, factor, read_header
from mim.data.decoding.names import printable_name
from mim.data.decoding.pictures import read_picture
from mim.data.decoding.selection import WHOLE, pick
from mim.data.settings import Selection
from mim.data.sources.base import NeedOf, Stored, size_of

PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"])
EXTENSIONS = PICTURES | {".npy"} | ENDINGS
READ_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))

__all__ = ["EXTENSIONS", "PICTURES", "READ_FLAGS", "BrokenImage", "decode", "decode_reduced"]


def decode(file: Path | bytes, channels: int, say: Say = say_each, selection: Selection = WHOLE) -> Stored:
    """An 8-bit PIL image, or a tensor (C, H, W) for numpy arrays, deeper pictures, several TIFF pages and DICOM.

    Of a GeoTIFF that names its missing pixels, those are NaN.

    A numpy array is (H, W), (H, W, C) or (C, H, W), of uint8, uint16 or a float type. Where the first and the last axis
    both have `channels` entries, the last one is taken as the channels; where the selection names channels, the shorter
    one is, if it is shorter than both sides of the image.

    Args:
        file: its path or its content.
        channels: of the result.
        say: takes what of the file is left out or added, and the file; a source has one that says each note once.
        selection: of pages and channels.

    Raises BrokenImage for every error of a decoder, and where the pixels would not be those of the file.
    """
    notes: list[str] = []
    with _broken():
        stored = _no_picture(file, channels, notes, selection)
        if stored is None:
            with _open(file) as stream:
                stored = _picture(file, stream, channels, notes, selection)
    say(notes, file)
    return stored


def decode_reduced(
    file: Path | bytes, channels: int, need_of: NeedOf, say: Say = say_each, selection: Selection = WHOLE
) -> tuple[Stored, tuple[int, int]]:
    """As decode, perhaps smaller or without its lowest rows, and the height and width of the image in the file.

    The sides of a JPEG file are divided by the largest of 2, 4 and 8 that `need_of` allows. Where they are not divided,
    the result may be a uint8 tensor (C, H, W) with the same pixels as the picture that decode gives. A file is decoded
    in full where the selection names channels.
    """
    if selection.numbers:
        whole = decode(file, channels, say, selection)
        return whole, size_of(whole)
    notes: list[str] = []
    with _broken():
        stored = _no_picture(file, channels, notes, selection)
        if stored is None:
            with _open(file) as stream:
                content = bytearray(stream.read())
            header = read_header(content)
            if header is None:
                stored = _picture(file, BytesIO(content), channels, notes, selection)
    if stored is not None:
        say(notes, file)
        return stored, size_of(stored)
    assert header is not None
    size = header.height, header.width
    need = need_of(*size)  # outside _broken: an error in it is no damage of the file
    with _broken():
        stored = decode_needed(content, header, channels, need)
        if stored is None:  # Pillow may still read it, or says what is wrong
            struct.pack_into(">H", content, header.frame + 5, header.height)  # as it was
            stored = read_picture(BytesIO(content), channels, notes, factor(need))
    say(notes, file)
    return stored, size


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


def _no_picture(file: Path | bytes, channels: int, notes: list[str], selection: Selection) -> Stored | None:
    """A numpy array or a DICOM image; None for other files."""
    if _is_array(file):
        return _array(file, channels, notes, selection)
    if not is_dicom(file, EXTENSIONS):
        return None
    with _open(file) as stream:
        return read_dicom(stream, channels, notes, selection)


def _picture(file: Path | bytes, stream: BinaryIO, channels: int, notes: list[str], selection: Selection) -> Stored:
    """A picture in the stream, which is the content of the file from its beginning."""
    stored = read_geotiff(file, stream, channels, notes, selection)
    return read_picture(stream, channels, notes, selection=selection) if stored is None else stored


def _is_array(file: Path | bytes) -> bool:
    return file.startswith(b"\x93NUMPY") if isinstance(file, bytes) else file.suffix.lower() == ".npy"


def _open(file: Path | bytes) -> BinaryIO:
    """A stream from the beginning of the file. Without its name, so that Pillow does not map it into memory.

    Raises BrokenImage at once for a folder, a pipe or a device.
    """
    if isinstance(file, bytes):
        return BytesIO(file)
    descriptor = os.open(file, READ_FLAGS)  # not blocked by a pipe without a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BrokenImage("it is a folder, a pipe or a device, and no file")
    return os.fdopen(descriptor, "rb")


def _array(file: Path | bytes, channels: int, notes: list[str], selection: Selection) -> Stored:
    with _open(file) as stream:
        _check_array_size(stream, len(file) if isinstance(file, bytes) else os.fstat(stream.fileno()).st_size)
        array = np.load(stream, allow_pickle=False)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16):
        if not np.issubdtype(array.dtype, np.floating):
            raise BrokenImage(
                f"an array of {array.dtype}: uint8, uint16 and floats are read; save array.astype(numpy.float32)"
            )
        with np.errstate(over="ignore"):  # what becomes infinite counts as broken
            array = array.astype(np.float32)
    if selection.numbers:
        channels = _own_channels(array.shape, notes)
    array_CHW = torch.from_numpy(np.ascontiguousarray(_channels_first(array, channels, notes)))
    return pick(array_CHW, selection.numbers)


def _own_channels(shape: tuple[int, ...], notes: list[str]) -> int:
    """The channels of an array: 1 of (H, W), else the shorter end where it is shorter than both other axes.

    Raises BrokenImage where neither end is.
    """
    if len(shape) == 2:
        return 1
    if len(shape) == 3 and shape[0] != shape[2] and min(shape[0], shape[2]) < shape[1]:
        which = "first" if shape[0] < shape[2] else "last"
        notes.append(f"of an array of shape {shape}, the {which} axis is taken as the channels")
        return min(shape[0], shape[2])
    raise BrokenImage(
        f"an array of shape {shape}, and DATA.channels_from is set: the axis of the channels is the one at an end that "
        "is shorter than both others, and there is none"
    )


def _channels_first(array: np.ndarray, channels: int, notes: list[str]) -> np.ndarray:
    """(C, H, W). Raises BrokenImage where no axis at an end has the channels."""
    shape = array.shape
    if not array.size:
        raise BrokenImage(f"an array of shape {shape} is empty")
    if array.ndim == 2 and channels == 1:
        return array[None]
    if array.ndim == 3 and shape[-1] == channels:
        if shape[0] == channels:
            notes.append(f"of an array of shape {shape}, the last axis is taken as the {channels} channels")
        return np.moveaxis(array, -1, 0)
    if array.ndim == 3 and shape[0] == channels:
        return array
    raise BrokenImage(f"an array of shape {shape} has no axis of DATA.channels {channels} at either end")


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
