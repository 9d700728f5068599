"""TIFF files: what each page holds by its tags, and whether Pillow reads just that.

Pillow reads one page. Of more than 3 samples it keeps what it can name, and of 16-bit colours the high byte. So each
file whose samples, bits or pages would be lost is refused here, before it is decoded; mim/data/decoding/stacks.py reads
most of them.
Source: TIFF 6.0 (Adobe, 1992), sections 2, 3 and 18; the tags are parsed by Pillow.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

from mim.data.decoding.broken import BrokenImage

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
SAMPLES, PLANAR, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT = 277, 284, 317, 338, 339
OLD_JPEG, JPEG = 6, 7  # compressions
PREDICTED = (5, 8, 32946, 34925, 50000)  # those whose predictor is undone: LZW, Deflate twice, LZMA, Zstandard
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8  # photometric interpretations
COLOURS = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3}  # samples that are colours; 1 in others
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # sample formats
FORMATS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float", 4: "untyped", 5: "complex", 6: "complex"}
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2  # extra samples
MASK_PAGE = 4
NOT_A_PAGE = 1 | MASK_PAGE  # a smaller copy, a transparency mask
NODATA = 42113  # GDAL's: the number of missing pixels
GEOGRAPHIC = {33550, 33922, 34264, 34735, 42112, NODATA}  # tags of GeoTIFF 1.1 (OGC 19-008r4), and of GDAL
MOST_PAGES = 1000  # that are looked for
AS_ARRAYS = "save it as .npy, such as numpy.save(name, tifffile.imread(file)), and set DATA.channels to its samples"
BY_TIFFFILE = "pip install 'mim-toolkit[tiff]' installs tifffile, which reads it; or save it as .npy"
AS_CHANNELS = "its {} pages are read as the channels of one image"


class BeyondPillow(BrokenImage):
    """A TIFF of which Pillow would read other pixels than it has, and tifffile may read just those."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page, as its tags describe it."""

    position: int  # among all pages of the file
    offset: int  # byte at which its tags begin
    size: tuple[int, int]  # height and width
    bits: tuple[int, ...]  # of each sample
    kind: int  # the sample format; 0 where samples have several
    photometric: int
    extra: tuple[int, ...]  # meaning of the samples behind the colours; empty also where the file does not say
    partial: bool  # a smaller copy of another page, or its mask
    swapped: bool  # whether Pillow gives the bytes of each level in the wrong order
    planar: bool  # whether samples lie one after the other, each as a plane
    predicted: bool  # whether it has a predictor that Pillow leaves as it is
    is_known: bool  # whether Pillow knows its compression
    description: str
    is_geographic: bool  # whether it has a tag of GeoTIFF or GDAL
    has_nodata: bool  # whether it has the tag of missing pixels
    is_cut: bool  # whether the text of that tag is not in the file
    is_mask: bool  # of another page: which of its pixels are there
    breaks_off: bool = False  # whether the tags of a page behind it are damaged, or not in the file

    @property
    def type(self) -> tuple[Any, ...]:
        """What pages have in common that are channels of one image."""
        return self.size, self.bits, self.kind, self.photometric

    def words(self) -> str:
        """Samples and bits, for a message."""
        count, bits = len(self.bits), " and ".join(map(str, sorted(set(self.bits))))
        kind = FORMATS.get(self.kind, "mixed")
        return f"{count} sample{'s' if count > 1 else ''} a pixel of {bits} bits, {kind}"


def prepare(file: BinaryIO, channels: int, notes: list[str]) -> tuple[BinaryIO, tuple[int, ...]]:
    """The file for Pillow, changed where it would lose a band, and the pages to read.

    Several pages are the channels of the image. `notes` gets what of the file is left out.

    Raises BeyondPillow where Pillow would read other pixels than the file has; BrokenImage where tifffile would, too.
    """
    pages = read_pages(file)
    file.seek(0)
    if not pages:
        return file, (0,)
    if pages[-1].breaks_off:
        if len(pages) > 1 or pages[0].photometric not in COLOURS:  # perhaps one of several channels
            raise BrokenImage(f"a TIFF that is damaged or incomplete: its list of pages breaks off after {len(pages)}")
        notes.append("its list of pages breaks off, and its first page is read")
    whole = [page for page in pages if not page.partial] or pages[:1]
    if has_hidden_pages(whole):
        raise BeyondPillow(f"a TIFF of more pages than it has tags for, by its description: {BY_TIFFFILE}")
    if len(whole) > 1:
        positions = _check_stack(whole, channels)
        if channels <= 4:  # perhaps they are pages of a document
            notes.append(AS_CHANNELS.format(len(whole)))
        return file, positions
    page = whole[0]
    _check_samples(page)
    _check_extra(page, channels, notes)
    if channels == 4 and page.photometric == RGB and page.extra == (UNSPECIFIED,):
        file = _with_alpha(file, page)
    return file, (page.position,)


def read_pages(file: BinaryIO) -> list[Page]:
    """The pages of a TIFF file, up to the first damaged one or MOST_PAGES and one more; none of another file."""
    file.seek(0)
    head = file.read(16)
    if not head.startswith(tuple(PREFIXES)):
        return []
    tags = ImageFileDirectory_v2(head if head[2] == 43 else head[:8])
    pages: list[Page] = []
    seen = {0}
    whole = False
    with suppress(Exception):  # damage; that of the first page is for Pillow to name
        while (offset := tags.next) not in seen and len(pages) <= MOST_PAGES:
            seen.add(offset)
            file.seek(offset)
            tags.load(file)
            pages.append(_page(tags, len(seen) - 2, offset, _tag_numbers(file, offset, head)))
        whole = True
    if pages and not whole:
        pages[-1] = replace(pages[-1], breaks_off=True)
    return pages


def _tag_numbers(file: BinaryIO, offset: int, head: bytes) -> set[int]:
    """The tags that stand at an offset, also those with a value that is not in the file. head: of the file."""
    order, big = "<" if head[:2] == b"II" else ">", head[2] == 43
    file.seek(offset)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    length = 20 if big else 12
    entries = file.read(min(count, 65535) * length)
    return {
        number for (number,) in struct.iter_unpack(f"{order}H{length - 2}x", entries[: len(entries) // length * length])
    }


def _page(tags: ImageFileDirectory_v2, position: int, offset: int, numbers: set[int]) -> Page:
    compression = tags.get(COMPRESSION, 1)
    photometric = YCBCR if compression == OLD_JPEG else tags.get(PHOTOMETRIC, WHITE_IS_ZERO)
    samples = tags.get(SAMPLES, 3 if compression in (OLD_JPEG, JPEG) and photometric in (RGB, YCBCR) else 1)
    bits = _tuple(tags.get(BITS, 1))
    kinds = set(_tuple(tags.get(SAMPLE_FORMAT, UNSIGNED)))
    kind = kinds.pop() if len(kinds) == 1 else 0
    compressed, unsigned_of = compression != 1, bits[0] if kind == UNSIGNED else 0
    return Page(
        position,
        offset,
        (tags[HEIGHT], tags[WIDTH]),
        (bits * min(samples, 65535) if len(bits) == 1 else bits)[:samples],
        kind,
        photometric,
        _tuple(tags.get(EXTRA_SAMPLES, ())),
        bool(tags.get(SUBFILE, 0) & NOT_A_PAGE),
        tags.prefix == b"MM" and bits[0] > 8 and (unsigned_of == 32 or (compressed and unsigned_of != 16)),
        tags.get(PLANAR, 1) == 2,
        tags.get(PREDICTOR, 1) > 1 and compression not in PREDICTED,
        compression in COMPRESSION_INFO,
        str(tags.get(DESCRIPTION, "")),
        not GEOGRAPHIC.isdisjoint(numbers),
        NODATA in numbers,
        NODATA in numbers and NODATA not in tags,
        bool(tags.get(SUBFILE, 0) & MASK_PAGE),
    )


def _tuple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def has_hidden_pages(pages: Sequence[Page]) -> bool:
    """Whether it is a file of ImageJ or tifffile that has more pages than it has tags for."""
    if not pages:
        return False
    text = pages[0].description
    images = next((line[7:] for line in text.splitlines() if line.startswith("images=")), "")
    more = text.startswith("ImageJ=") and images.isdecimal() and int(images) > len(pages)
    return more or (text.startswith("{") and '"truncated": true' in text)


def _check_stack(pages: Sequence[Page], channels: int) -> tuple[int, ...]:
    """The positions of grey pages that are the channels of one image."""
    if len(pages) > MOST_PAGES:
        raise BrokenImage(
            f"a TIFF of {MOST_PAGES:,} or more pages: so many are no channels; DATA.pages first, middle or max reads "
            "them as planes or frames"
        )
    count = f"{len(pages):,}"
    grey = all(page.type == pages[0].type and len(page.bits) == 1 for page in pages)
    if not grey or pages[0].photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        raise BeyondPillow(f"a TIFF of {count} pages that are not grey levels of one size and type: {BY_TIFFFILE}")
    if len(pages) != channels:
        raise BeyondPillow(
            f"a TIFF of {count} pages, which are read as the channels of one image, and DATA.channels is {channels}: "
            "set it to the number of pages; where they are planes or frames, set DATA.pages first, middle or max, with "
            f"tifffile: {BY_TIFFFILE}"
        )
    _check_samples(pages[0])
    return tuple(page.position for page in pages)


def _check_samples(page: Page) -> None:
    """Raises BrokenImage where a sample has a type that Pillow changes, or does not read."""
    colours, bits, count = COLOURS.get(page.photometric, 1), set(page.bits), len(page.bits)
    if len(bits) > 1 or page.kind not in (UNSIGNED, SIGNED, FLOAT):
        raise _refusal(page)
    if count > 1 and (page.kind != UNSIGNED or max(bits) > 8):
        raise _refusal(page, ": of several samples, Pillow reads 8 bits")
    if page.kind == SIGNED and max(bits) <= 8:
        raise _refusal(page, ": of signed levels, Pillow reads 16 and 32 bits")
    if page.kind == FLOAT and bits != {32}:
        raise _refusal(page, ": of floats, Pillow reads 32 bits")
    if not page.is_known:
        raise _refusal(page, ", of a compression that Pillow does not know")
    if page.swapped:
        raise _refusal(page, ", in big-endian order: Pillow reads other numbers")
    if page.predicted:
        raise _refusal(page, ", with a predictor that its compression does not know")
    if page.planar and page.photometric == LAB:
        raise _refusal(page, ", L*a*b* in planes: Pillow reads other colours")
    if page.photometric == WHITE_IS_ZERO and max(bits) > 8:
        raise _refusal(page, ", in which 0 is white: of those, Pillow reads 8 bits")
    if count > colours and page.photometric not in COLOURS and not (count == 2 and page.extra == (ALPHA,)):
        raise _refusal(page, ", and of samples without a colour Pillow reads one")


def _check_extra(page: Page, channels: int, notes: list[str]) -> None:
    """Raises BrokenImage where the samples behind the colours, or DATA.channels, ask for other pixels than are read."""
    count = len(page.bits)
    behind = count - COLOURS.get(page.photometric, 1)
    if PREMULTIPLIED in page.extra:
        raise BrokenImage(premultiplied(page.words()))
    allowed = (1, 3, 4) if (count, page.photometric) == (4, RGB) else (1, 3)
    if channels not in allowed:
        raise _refusal(page, f", and DATA.channels is {channels}: set it to {' or '.join(map(str, allowed))}")
    if behind > 0 and channels < 4 and page.extra != (ALPHA,):
        notes.append(f"DATA.channels {channels} leaves out {behind} of its {count} samples a pixel")


def _refusal(page: Page, what: str = "") -> BrokenImage:
    """Why Pillow does not read a page. tifffile reads grey levels and RGB as they are; others it does not convert."""
    if page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
        return BeyondPillow(f"a TIFF of {page.words()}{what}; {BY_TIFFFILE}")
    return BrokenImage(f"a TIFF of {page.words()}{what}; {AS_ARRAYS}")


def premultiplied(words: str) -> str:
    """Why a file is refused whose colours are multiplied by alpha. words: its samples and bits."""
    return (
        f"a TIFF of {words}, with colours that are multiplied by alpha (ExtraSamples 1): save it with plain colours, "
        f"or {AS_ARRAYS}"
    )


def _with_alpha(file: BinaryIO, page: Page) -> BinaryIO:
    """A copy that calls the fourth sample alpha, which Pillow keeps, in place of a sample of unspecified meaning."""
    content = bytearray(file.read())
    order, big = "<" if content[:2] == b"II" else ">", content[2] == 43
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, page.offset)[0]
    start, length, value = page.offset + (8 if big else 2), (20 if big else 12), (12 if big else 8)
    for entry in range(start, start + count * length, length):
        if struct.unpack_from(f"{order}H", content, entry)[0] == EXTRA_SAMPLES:
            size = {1: "B", 3: "H"}[struct.unpack_from(f"{order}H", content, entry + 2)[0]]
            struct.pack_into(f"{order}{size}", content, entry + value, ALPHA)
            break
    return BytesIO(content)
