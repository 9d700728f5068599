"""JPEG files: decoding no more of one than a crop needs.

Shapes: C channels, H W pixels.
"""

import math
import struct
from dataclasses import dataclass

import torch
from PIL import Image
from simplejpeg import decode_jpeg

from mim.data.sources.base import Need, Stored

FRAMES = frozenset([0xC0, 0xC1, 0xC2])  # markers: baseline, extended and progressive
SKIPPED = frozenset([0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])  # may stand before the scan, each with its length
SCAN, END = 0xDA, b"\xff\xd9"
COLOURS = {(1, 1): "GRAY", (1, 3): "RGB", (3, 3): "RGB"}  # (components, channels) that Pillow gives the same pixels for


@dataclass(frozen=True, slots=True)
class Header:
    """What a JPEG file of 8 bits says before its scan.

    place: where its frame begins; block: rows that are coded together; chroma: whether colours have fewer rows than
    brightness; one_scan: baseline, with all components in one scan, so that rows come one after the other.
    """

    height: int
    width: int
    components: int
    place: int
    block: int
    chroma: bool
    one_scan: bool


def read_header(content: bytearray | memoryview) -> Header | None:
    """None for other files and for those that Pillow should judge. Source: ITU-T T.81, B.1 and B.2."""
    if content[:2] != b"\xff\xd8":
        return None
    place, frame = 2, 0
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == SCAN:
            return _header(content, frame, one_scan=content[place + 4] == content[frame + 9]) if frame else None
        if marker in FRAMES:
            frame = place
        elif marker not in SKIPPED:
            return None
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def decode_needed(content: bytearray | memoryview, header: Header, channels: int, need: Need) -> Stored | None:
    """The rows that are needed, from the top, perhaps smaller by 2, 4 or 8; None where Pillow should judge.

    A uint8 tensor (C, H, W) with the very pixels that Pillow gives, or, where it is smaller, a picture. Changes
    `content`.
    """
    colours = COLOURS.get((header.components, channels))
    if colours is None:
        return None
    rows = header.height
    if header.one_scan and content[-2:] == END:  # of a file that breaks off, what is missing must not go unnoticed
        blocks = math.ceil(need.rows / header.block) + header.chroma  # colours of a block's last row need the next one
        rows = min(rows, blocks * header.block)
        struct.pack_into(">H", content, header.place + 5, rows)
    by = factor(need)
    least = {"min_height": math.ceil(rows / by), "min_width": math.ceil(header.width / by)} if by > 1 else {}
    try:
        # a file whose rows go on after the last one it announces is only sound where one is not strict
        pixels_HWC = decode_jpeg(content, colours, strict=rows == header.height, **least)
    except ValueError:
        return None
    if by > 1:
        return Image.fromarray(pixels_HWC if channels > 1 else pixels_HWC[..., 0])
    return torch.from_numpy(pixels_HWC[: need.rows]).permute(
        2, 0, 1
    )  # the last row of all lacks its neighbours' colours


def factor(need: Need) -> int:
    """The largest of 1, 2, 4 and 8 that the sides may be divided by."""
    return next((factor for factor in (8, 4, 2) if factor <= need.by), 1)


def _header(content: bytearray | memoryview, place: int, one_scan: bool) -> Header | None:
    bits, height, width, components = struct.unpack_from(">BHHB", content, place + 4)
    if bits != 8 or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    tall = max(content[place + 11 + 3 * component] & 15 for component in range(components))
    return Header(height, width, components, place, 8 * tall, tall > 1, one_scan and content[place + 1] < 0xC2)
