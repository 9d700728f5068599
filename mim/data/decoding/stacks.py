"""TIFF files that Pillow does not read as they are: any pages, samples, tiles, compressions and number types.

They are read by tifffile, and by imagecodecs where a compression needs it. What the pages are comes from the metadata
of OME-TIFF, ImageJ and tifffile, and from DATA.pages.
Shapes: axes as tifffile names them (C channel, S sample, Z plane, T time, Y X pixels; others for pages without a
meaning); N channels of the file, H W pixels.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from mim.data.decoding import tiff
from mim.data.decoding.band_names import band_names
from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.numbers import to_stored_type
from mim.data.decoding.selection import MODES, pick
from mim.data.settings import Pages, Selection
from mim.data.sources.base import Stored

CHANNELS = "CS"  # axes that are channels, whatever DATA.pages is
MOST_BYTES = 2**32  # of one decoded file
HARMLESS = "<TiffTag.fromfile>"  # a tag that nothing here needs
PHOTOMETRIC = {tiff.WHITE_IS_ZERO: "grey", tiff.BLACK_IS_ZERO: "grey", tiff.RGB: "RGB"}
JPEGS = (tiff.JPEG, 33007, 34892)  # compressions whose YCbCr is decoded to RGB


def is_stack(file: BinaryIO, selection: Selection) -> bool:
    """Whether DATA.channels_from, DATA.pages or DATA.scale asks for what Pillow does not give of this file."""
    if selection == Selection():
        return False
    pages = tiff.read_pages(file)
    file.seek(0)
    if not pages or pages[0].photometric not in PHOTOMETRIC:
        return False
    whole = [page for page in pages if not page.partial]
    several = selection.pages != "channels" and (len(whole) > 1 or tiff.has_hidden_pages(whole))
    numbers = pages[0].kind == tiff.SIGNED or (pages[0].kind == tiff.UNSIGNED and max(pages[0].bits) > 16)
    return bool(selection.numbers) or several or (selection.to_float and numbers)


def read_stack(
    file: BinaryIO, channels: int, notes: list[str], selection: Selection, refusal: str = "its keys of DATA need it"
) -> Stored:
    """The image: a picture where one page has 8 bits, else (C, H, W). Whole numbers of other types become float32.

    Args:
        file: a TIFF.
        channels: of the image.
        notes: gets what of the file is left out.
        selection: of pages and channels.
        refusal: why Pillow does not read it.

    Raises BrokenImage where the file is incomplete, tifffile is missing, or it has other channels.
    """
    tifffile = _tifffile(refusal)
    file.seek(0)
    content = file.read()
    with _complaints(), tifffile.TiffFile(BytesIO(content), _multifile=False) as stack:
        series = _series(stack, selection.pages, notes)
        page = series.keyframe
        _check_kind(page)
        _check_complete(series, len(content))
        pixels, axes = _planes(stack.asarray(series=stack.series.index(series)), series.axes, selection.pages)
        names = band_names(stack, page) if selection.numbers else ()
    pixels_NHW = _channels_first(pixels, axes)
    image_NHW = torch.from_numpy(_levels(pixels_NHW, page))
    count = len(image_NHW) // page.samplesperpixel
    if selection.numbers:
        return pick(image_NHW, selection.numbers, names if len(names) == len(image_NHW) else ())
    image_CHW = _fit(image_NHW, page, count, channels, notes)
    return to_pil_image(image_CHW) if count == 1 and image_CHW.dtype == torch.uint8 and channels in MODES else image_CHW


def _tifffile(refusal: str) -> ModuleType:
    try:
        import tifffile
    except ImportError as error:
        raise BrokenImage(refusal) from error
    return tifffile


@contextmanager
def _complaints() -> Iterator[None]:
    """Raises BrokenImage where tifffile only logs that it left something out, or filled it with zeros."""
    messages: list[str] = []
    thread = threading.get_ident()

    def hear(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.WARNING and HARMLESS not in record.getMessage():
            messages.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(hear)
    try:
        yield
    finally:
        logger.removeFilter(hear)
    if messages:
        raise BrokenImage(f"a TIFF that is damaged, or names other files: {messages[0]}")


def _series(stack: Any, pages: Pages, notes: list[str]) -> Any:
    """The pages that belong together. Raises BrokenImage where there are others besides them."""
    every = [series for series in stack.series if not _is_partial(series.keyframe)]
    if not every:
        raise BrokenImage("a TIFF without a page that is an image")
    if len(every) > 1:
        sizes = ", ".join("x".join(map(str, series.shape)) for series in every[:4])
        if pages != "first":
            raise BrokenImage(
                f"a TIFF of {len(every)} images of several sizes or types ({sizes}): DATA.pages first reads the first "
                "of them; or save each as a file"
            )
        notes.append(f"of its {len(every)} images ({sizes}) the first is read")
    return every[0]


def _is_partial(page: Any) -> bool:
    return bool(page.subfiletype & tiff.NOT_A_PAGE)


def _check_kind(page: Any) -> None:
    """Raises BrokenImage where samples are no grey levels or colours, or have a type that is no number."""
    is_rgb = page.photometric == tiff.YCBCR and page.compression in JPEGS
    if page.photometric not in PHOTOMETRIC and not is_rgb:
        name = getattr(page.photometric, "name", page.photometric)
        raise BrokenImage(f"a TIFF whose samples are {name}, and grey levels and RGB are read: {tiff.AS_ARRAYS}")
    if tiff.PREMULTIPLIED in page.extrasamples:
        raise BrokenImage(tiff.premultiplied(_words(page)))
    if page.dtype is None or page.dtype.kind not in "buif" or page.dtype.itemsize > 8:
        raise BrokenImage(f"a TIFF of {_words(page)}: {tiff.AS_ARRAYS}")
    if page.photometric == tiff.WHITE_IS_ZERO and page.dtype.kind not in "bu":
        raise BrokenImage(f"a TIFF of {_words(page)}, in which 0 is white: of those, unsigned levels are read")


def _words(page: Any) -> str:
    """Samples and type, for a message."""
    count = page.samplesperpixel
    return f"{count} sample{'s' if count > 1 else ''} a pixel of {page.bitspersample} bits, {page.dtype}"


def _check_complete(series: Any, size: int) -> None:
    """Raises BrokenImage where pixels are missing in the file, or are too many, before they take memory."""
    bytes_needed = series.size * series.dtype.itemsize
    if bytes_needed > MOST_BYTES:
        raise BrokenImage(f"a TIFF of {'x'.join(map(str, series.shape))} pixels, {bytes_needed:,} bytes: too large")
    if series.dataoffset is not None:
        if series.dataoffset + bytes_needed > size:
            raise BrokenImage(f"a TIFF that is incomplete: {bytes_needed:,} bytes of pixels, in a file of {size:,}")
        return
    for number, page in enumerate(series):
        if page is None:
            raise BrokenImage(f"a TIFF that describes {len(series)} pages, and page {number} is not in the file")
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if not parts or min(map(min, parts)) <= 0 or max(map(sum, parts)) > size:
            raise BrokenImage(f"a TIFF that is incomplete: pixels of page {number} are not in the file")


def _planes(pixels: np.ndarray, axes: str, pages: Pages) -> tuple[np.ndarray, str]:
    """The pixels and axes that are left where planes are no channels."""
    if pages == "channels":
        return pixels, axes
    for axis in (axis for axis in axes if axis not in CHANNELS + "YX"):
        number = axes.index(axis)
        middle = pixels.shape[number] // 2
        pixels = pixels.max(number) if pages == "max" else pixels.take(0 if pages == "first" else middle, number)
        axes = axes.replace(axis, "", 1)
    return pixels, axes


def _channels_first(pixels: np.ndarray, axes: str) -> np.ndarray:
    """(N, H, W), the channels in the order of the pages and, in a page, of its samples."""
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise BrokenImage(f"a TIFF of axes {axes}: Y and X are needed")
    order = [number for number, axis in enumerate(axes) if axis not in "YX"] + [axes.index("Y"), axes.index("X")]
    pixels = pixels.transpose(order)
    return pixels.reshape(-1, *pixels.shape[-2:])


def _levels(pixels_NHW: np.ndarray, page: Any) -> np.ndarray:
    """Pixels in a stored type. Levels of 1, 2 and 4 bits are scaled to 8 bits, as Pillow does; black is 0."""
    bits, kind = page.bitspersample, pixels_NHW.dtype.kind
    if kind == "b":
        pixels_NHW, bits = pixels_NHW.astype(np.uint8), 1
    if page.photometric == tiff.WHITE_IS_ZERO:
        pixels_NHW = (2**bits - 1) - pixels_NHW
    if bits in (1, 2, 4):
        pixels_NHW = pixels_NHW.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    return np.ascontiguousarray(to_stored_type(pixels_NHW))


def _fit(image_NHW: Tensor, page: Any, pages: int, channels: int, notes: list[str]) -> Tensor:
    """The image with DATA.channels: a grey one is repeated for 3, and samples behind the colours are left out.

    pages: those that are channels.
    """
    count = len(image_NHW)
    if count == channels:
        if pages > 1 and channels <= 4:  # perhaps they are pages of a document
            notes.append(tiff.AS_CHANNELS.format(pages))
        return image_NHW
    if count == 1 and channels == 3:
        return image_NHW.repeat(3, 1, 1)
    colours = 1 if PHOTOMETRIC.get(page.photometric) == "grey" else 3
    has_alpha = tuple(page.extrasamples) == (tiff.ALPHA,)
    if pages == 1 and (colours == 3 or has_alpha) and channels in (colours, 3):
        notes.append(f"DATA.channels {channels} leaves out {count - colours} of its {count} samples a pixel")
        return image_NHW[:colours].repeat(3 if colours < channels else 1, 1, 1)
    raise BrokenImage(_other_count(page, count, pages, channels))


def _other_count(page: Any, count: int, pages: int, channels: int) -> str:
    """Why an image of `count` channels has not DATA.channels."""
    words, ways = _words(page), [f"set it to {count}" + (" or 3" if count == 1 else "")]
    if pages > 1:
        words = f"{pages} pages of {words}, which are read as the channels of one image"
        ways.append("where pages are planes or frames, set DATA.pages first, middle or max")
    if channels < count:
        ways.append(f"choose {channels} of them by DATA.channels_from")
    return f"a TIFF of {words}, and DATA.channels is {channels}: {'; or '.join(ways)}"
