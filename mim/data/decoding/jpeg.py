"""JPEG files: decoding only what a crop needs.

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
    """The header of a JPEG file of 8 bits."""

    height: int  # rows of pixels
    width: int  # columns of pixels
    components: int  # 1 for grey, 3 for colours
    frame: int  # byte at which its frame begins
    block: int  # rows that are coded together
    subsampled: bool  # whether colours have fewer rows than brightness
    one_scan: bool  # baseline, with all components in one scan, so that rows come one after the other


def read_header(content: bytearray | memoryview) -> Header | None:
    """The header; None for other files, and for those that are left to Pillow. Source: ITU-T T.81, B.1 and B.2."""
    if content[:2] != b"\xff\xd8":
        return None
    position, frame = 2, 0
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == SCAN:
            return _header(content, frame, one_scan=content[position + 4] == content[frame + 9]) if frame else None
        if marker in FRAMES:
            frame = position
        elif marker not in SKIPPED:
            return None
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None


def decode_needed(content: bytearray | memoryview, header: Header, channels: int, need: Need) -> Stored | None:
    """The rows that are needed, from the top, with sides divided by 1, 2, 4 or 8; None where it is left to Pillow.

    A uint8 tensor (C, H, W) with the pixels that Pillow gives; where the sides were divided, a picture. Changes
    `content`.
    """
    colours = COLOURS.get((header.components, channels))
    if colours is None:
        return None
    rows = header.height
    if header.one_scan and content[-2:] == END:  # a file that breaks off is decoded in full, so that this is noticed
        # the colours of a block's last row need the next block
        blocks = math.ceil(need.rows / header.block) + header.subsampled
        rows = min(rows, blocks * header.block)
        struct.pack_into(">H", content, header.frame + 5, rows)
    by = factor(need)
    reduced = {"min_height": math.ceil(rows / by), "min_width": math.ceil(header.width / by)} if by > 1 else {}
    try:
        # strict decoding would refuse a file that has more rows than its header, as changed here, says
        pixels_HWC = decode_jpeg(content, colours, strict=rows == header.height, **reduced)
    except ValueError:
        return None
    if by > 1:
        return Image.fromarray(pixels_HWC if channels > 1 else pixels_HWC[..., 0])
    # the last decoded row has wrong colours, for want of the next one
    return torch.from_numpy(pixels_HWC[: need.rows]).permute(2, 0, 1)


def factor(need: Need) -> int:
    """The largest of 1, 2, 4 and 8 by which the sides may be divided."""
    return next((divisor for divisor in (8, 4, 2) if divisor <= need.reduction), 1)


def _header(content: bytearray | memoryview, frame: int, one_scan: bool) -> Header | None:
    bits, height, width, components = struct.unpack_from(">BHHB", content, frame + 4)
    if bits != 8 or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    sampling = max(content[frame + 11 + 3 * component] & 15 for component in range(components))
    baseline = content[frame + 1] < 0xC2
    return Header(height, width, components, frame, 8 * sampling, sampling > 1, one_scan and baseline)
