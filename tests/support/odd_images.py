"""Image files that Pillow does not write: deep colours, CMYK behind Adobe's transform, and sizes that are a lie."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, transparent: bytes = b"") -> Path:
    """A PNG of that header, whatever its rows (each with its filter byte) hold. transparent: the content of tRNS."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    alpha = chunk(b"tRNS", transparent) if transparent else b""
    chunks = chunk(b"IHDR", header) + alpha + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def png_of_16_bits(path: Path, colours_HWC: np.ndarray, transparent: tuple[int, ...] = ()) -> Path:
    """RGB of 16 bits. transparent: a colour."""
    height, width, _ = colours_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours_HWC)
    return png(path, width, height, 16, 2, rows, struct.pack(f">{len(transparent)}H", *transparent))


def tiff(path: Path, width: int, height: int, bits: tuple[int, ...], content: bytes) -> Path:
    """An uncompressed TIFF of one strip, of that header."""
    offset = 8
    after = offset + 2 + 10 * 12 + 4
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, len(bits), after), (259, 3, 1, 1)]
    fields += [(262, 3, 1, 2 if len(bits) == 3 else 1), (273, 4, 1, after + 2 * len(bits)), (277, 3, 1, len(bits))]
    fields += [(278, 4, 1, height), (279, 4, 1, len(content)), (284, 3, 1, 1)]
    if len(bits) == 1:
        fields[2] = (258, 3, 1, bits[0])
    packed = b"".join(struct.pack("<HHII", *field) for field in fields)
    depths = struct.pack(f"<{len(bits)}H", *bits)
    path.write_bytes(b"II*\0" + struct.pack("<IH", offset, len(fields)) + packed + bytes(4) + depths + content)
    return path


def tiff_of_16_bits(path: Path, colours_HWC: np.ndarray) -> Path:
    """RGB of 16 bits."""
    height, width, _ = colours_HWC.shape
    return tiff(path, width, height, (16, 16, 16), colours_HWC.astype("<u2").tobytes())


def ycck_jpeg(path: Path, picture: Image.Image) -> Path:
    """Four components with the colours as YCbCr, inverted, as Adobe's programs write them."""
    inverted = Image.fromarray(255 - np.asarray(picture))
    stored_HWC = np.asarray(inverted.convert("YCbCr"))
    black_HW1 = np.full((*stored_HWC.shape[:2], 1), 255, np.uint8)
    planes = Image.fromarray(255 - np.concatenate([stored_HWC, black_HW1], axis=2), "CMYK")  # Pillow inverts once more
    planes.save(path, quality=95, subsampling=0)
    content = bytearray(path.read_bytes())
    position = content.index(b"Adobe")
    assert content[position + 11] == 0
    content[position + 11] = 2  # the colour transform: YCCK
    path.write_bytes(content)
    return path
