"""Pictures: decoding by Pillow, and the checks that its pixels are those of the file.

Pillow gives 8 bits for colours of any depth. So PNGs of 16 bits are decoded by torchvision, and other files whose
samples or bits would be lost are refused.
Shapes: C channels, H W pixels.
"""

from functools import cache
from typing import BinaryIO

import numpy as np
import torch
import torchvision
from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile
from torch import Tensor

from mim.data.decoding import tiff
from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.selection import MODES, WHOLE, pick
from mim.data.decoding.stacks import is_stack, read_stack
from mim.data.settings import Selection
from mim.data.sources.base import Stored

# the formats of Pillow that are read; some of its others start programs
FORMATS = frozenset(["JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF"])
ANIMATED = frozenset(["GIF", "PNG", "WEBP", "AVIF"])
PNG, PNG_DEPTH, PNG_COLOUR = b"\x89PNG\r\n\x1a\n", 24, 25  # how a file begins, and the bytes of its depth and colours
PNG_GREY = 0
AS_ARRAYS = "save it as .npy"
NO_ALPHA = "its alpha channel is left out by DATA.channels {}, and not blended"


def read_picture(file: BinaryIO, channels: int, notes: list[str], by: int = 1, selection: Selection = WHOLE) -> Stored:
    """An 8-bit PIL image; a tensor (C, H, W) for grey levels of more bits, PNGs of 16 bits, and TIFFs beyond Pillow.

    Args:
        file: a file from its beginning.
        channels: of the result.
        notes: gets what of the file is left out, and what the result has beyond it.
        by: the number that divides the sides of a JPEG file.
        selection: of pages and channels.

    Raises BrokenImage, or any error of a decoder, where it cannot be read as the file has it.
    """
    if is_stack(file, selection):
        return read_stack(file, channels, notes, selection)
    try:
        if selection.numbers:
            return pick(_by_pillow(file, _own_channels(file), notes), selection.numbers)
        return _by_pillow(file, channels, notes, by)
    except tiff.BeyondPillow as refusal:
        return read_stack(file, channels, notes, selection, str(refusal))


def _by_pillow(file: BinaryIO, channels: int, notes: list[str], by: int = 1) -> Stored:
    file, pages = tiff.prepare(file, channels, notes)
    head = file.read(PNG_COLOUR + 1)
    file.seek(0)
    with Image.open(file, formats=_formats()) as picture:
        if by > 1:
            picture.draft(None, (picture.width // by, picture.height // by))
        if picture.format == "PNG" and head[PNG_DEPTH] == 16 and head[PNG_COLOUR] != PNG_GREY:
            return _png_of_16_bits(file, channels, notes, picture.has_transparency_data)
        if len(pages) > 1:
            return torch.from_numpy(np.stack([_page_HW(picture, page) for page in pages]))
        if pages[0]:
            picture.seek(pages[0])
        shift = _surplus_bits(picture, file, channels)
        picture.load()
        if picture.format in ANIMATED and _frames(picture) > 1:
            notes.append("of several frames the first is read")
        if _is_deep(picture):
            if picture.has_transparency_data:
                notes.append(NO_ALPHA.format(channels))
            levels_HW = _levels_HW(picture)
            return _repeated(levels_HW >> shift if shift else levels_HW, channels)
        return to_mode(picture, channels, notes)


def _own_channels(file: BinaryIO) -> int:
    """The channels of a picture: 1 for grey levels, 3 for colours, 4 for colours with alpha."""
    with Image.open(file, formats=_formats()) as picture:
        is_grey = picture.mode in ("1", "L", "LA", "La") or _is_deep(picture)
        alpha = picture.has_transparency_data
    file.seek(0)
    return 1 if is_grey else 3 + alpha


def check_channels(channels: int) -> None:
    """Raises ValueError where no picture has that many channels."""
    if channels not in MODES:
        raise ValueError(f"DATA.channels is {channels}: a picture has {', '.join(map(str, MODES))}")


def to_mode(picture: Image.Image, channels: int, notes: list[str] | None = None) -> Image.Image:
    """An 8-bit picture with that many channels: grey, RGB or RGBA. Grey is repeated, and no alpha is opaque.

    notes: gets what is left out or added.
    """
    if channels not in MODES:
        raise BrokenImage(f"a picture has 1, 3 or 4 channels and DATA.channels is {channels}: use .npy arrays")
    if picture.mode == "CMYK" and channels == 4:
        raise BrokenImage("a picture of CMYK, and DATA.channels is 4: DATA.channels 3 reads its colours as RGB")
    if notes is not None:
        notes += _conversions(picture, channels)
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def _conversions(picture: Image.Image, channels: int) -> list[str]:
    """What is lost or added in this mode."""
    notes, alpha = [], picture.has_transparency_data
    if alpha and channels < 4:
        notes.append(NO_ALPHA.format(channels))
    if not alpha and channels == 4:
        notes.append("it has no alpha channel, and the fourth of DATA.channels 4 is 255")
    if channels == 1 and picture.mode not in ("1", "L", "LA", "La"):
        notes.append("its colours become one grey level by DATA.channels 1")
    return notes


@cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this Pillow reads, the common ones first."""
    Image.init()
    return tuple(sorted(FORMATS & set(Image.OPEN), key=lambda name: (name not in ("JPEG", "PNG"), name)))


def _frames(picture: Image.Image) -> int:
    """2 or more for an animation."""
    try:
        return 1 + bool(getattr(picture, "is_animated", False))
    except Exception:  # damage behind the first frame
        return 1


def _is_deep(picture: Image.Image) -> bool:
    """Whether it is grey with more than 8 bits, as microscopes write it."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _levels_HW(picture: Image.Image) -> np.ndarray:
    """Grey levels as uint16 or float32."""
    grey_HW = np.asarray(picture)
    if picture.mode == "F":
        return grey_HW
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise BrokenImage(
            f"levels from {grey_HW.min()} to {grey_HW.max()}: of whole numbers 16 bits are read; {AS_ARRAYS}"
        )
    return grey_HW.astype(np.uint16)


def _page_HW(picture: Image.Image, page: int) -> np.ndarray:
    picture.seek(page)
    picture.load()
    return _levels_HW(picture) if _is_deep(picture) else np.asarray(to_mode(picture, 1))


def _repeated(grey_HW: np.ndarray, channels: int) -> Tensor:
    if channels not in (1, 3):
        raise BrokenImage(
            f"grey levels of more than 8 bits, and DATA.channels is {channels}: 1 or 3 are read; {AS_ARRAYS}"
        )
    return torch.from_numpy(np.repeat(grey_HW[None], channels, axis=0))


def _png_of_16_bits(file: BinaryIO, channels: int, notes: list[str], transparent: bool) -> Tensor:
    """A PNG of 16 bits with colours or alpha. transparent: whether it has alpha, or a transparent colour."""
    decode_png = getattr(torchvision.io, "decode_png", None)  # deprecated since 0.29
    if decode_png is None:
        raise BrokenImage(f"a PNG with colours of 16 bits, which this torchvision does not read: {AS_ARRAYS}")
    file.seek(0)
    pixels_CHW = decode_png(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8))
    if pixels_CHW.dtype != torch.uint16:
        raise BrokenImage(f"a PNG with colours of 16 bits, which were decoded as {pixels_CHW.dtype}: {AS_ARRAYS}")
    has_alpha = len(pixels_CHW) in (2, 4)
    colours_CHW = pixels_CHW[: len(pixels_CHW) - has_alpha]
    allowed = (1, 3) if len(colours_CHW) == 1 else (3, 4) if has_alpha else (3,)
    if channels not in allowed:
        raise BrokenImage(
            f"a PNG of {len(pixels_CHW)} samples a pixel of 16 bits, and DATA.channels is {channels}: set it to "
            f"{' or '.join(map(str, allowed))}, or {AS_ARRAYS}"
        )
    if channels == 4:
        return pixels_CHW
    if transparent:
        notes.append(NO_ALPHA.format(channels))
    return colours_CHW.repeat(channels, 1, 1) if len(colours_CHW) < channels else colours_CHW.contiguous()


def _surplus_bits(picture: Image.Image, file: BinaryIO, channels: int) -> int:
    """The bits by which Pillow shifts grey levels up. Raises BrokenImage where it would lose bits or a band."""
    tiles = getattr(picture, "tile", ())  # how a file is to be decoded; gone once it is
    args = tiles[0][3] if tiles else None
    if isinstance(picture, PpmImageFile) and picture.mode == "RGB" and isinstance(args, tuple) and args[-1] > 255:
        raise BrokenImage(f"a PPM of colours up to {args[-1]}: up to 255 are read; {AS_ARRAYS}")
    if picture.format in ("BMP", "DIB") and channels == 4 and isinstance(args, tuple) and "X" in str(args[0]):
        raise BrokenImage(
            "a BMP of 32 bits that does not call its fourth byte alpha, and DATA.channels is 4: set it to 3, or save "
            "it as PNG"
        )
    if picture.format == "AVIF" and _avif_is_deep(file):
        raise BrokenImage(f"an AVIF of more than 8 bits: 8 are read; {AS_ARRAYS}")
    if picture.format == "JPEG2000":
        samples = _jpeg_2000_samples(file)
        if max(samples) > (16 if len(samples) == 1 else 8):
            bits = " and ".join(map(str, sorted({sample & 127 for sample in samples})))
            signed = ", signed" if max(samples) > 127 else ""
            raise BrokenImage(f"a JPEG 2000 of {len(samples)} samples a pixel of {bits} bits{signed}: {AS_ARRAYS}")
        return 16 - samples[0] if samples[0] > 8 else 0
    return 0


def _avif_is_deep(file: BinaryIO) -> bool:
    """Source: AV1 Codec ISO Media File Format Binding, section 2.3: the third byte of `av1C`."""
    content = _content(file)
    position = content.find(b"av1C")
    return position >= 0 and bool(content[position + 6] & 0b01000000)


def _jpeg_2000_samples(file: BinaryIO) -> list[int]:
    """The bits of each sample, plus 128 where it has a sign. Source: ITU-T T.800, A.5.1, marker SIZ."""
    content = _content(file)
    start = content.index(b"\xff\x4f\xff\x51") + 4  # the length of the segment
    count = int.from_bytes(content[start + 36 : start + 38], "big")
    return [(size & 128) + (size & 127) + 1 for size in content[start + 38 : start + 38 + 3 * count : 3]]


def _content(file: BinaryIO) -> bytes:
    """All bytes; the position stays."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return content
