"""Damaged images made from real ones: bits flipped, ends cut off, pages of zeros, in ten kinds, from a fixed seed."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

PAGE = 512
FORMATS: dict[str, tuple[str, str, dict]] = {
    "baseline": (".jpg", "JPEG", {"quality": 90}),
    "progressive": (".jpeg", "JPEG", {"quality": 90, "progressive": True}),
    "png": (".png", "PNG", {}),
    "tiff": (".tif", "TIFF", {"compression": "tiff_lzw"}),
    "raw": (".tiff", "TIFF", {}),
    "webp": (".webp", "WEBP", {"quality": 80}),
    "gif": (".gif", "GIF", {}),
    "bmp": (".bmp", "BMP", {}),
    "ppm": (".ppm", "PPM", {}),
    "npy": (".npy", "", {}),
}


def write_damaged(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """So many damaged files, of each format as many, damaged in each way in turn."""
    generator = np.random.default_rng(seed)
    return [_write(folder, "damaged", number, generator, damaged=True) for number in range(count)]


def write_intact(folder: Path, count: int, seed: int = 1) -> list[Path]:
    """So many intact files of the same kinds."""
    generator = np.random.default_rng(seed)
    return [_write(folder, "intact", number, generator, damaged=False) for number in range(count)]


def _write(folder: Path, name: str, number: int, generator: np.random.Generator, damaged: bool) -> Path:
    kinds = list(FORMATS)
    suffix, kind, options = FORMATS[kinds[number % len(kinds)]]
    picture = _piece(generator)
    file = io.BytesIO()
    np.save(file, np.asarray(picture)) if not kind else picture.save(file, kind, **options)
    content = bytearray(file.getvalue())
    if damaged:
        content = DAMAGE[number // len(kinds) % len(DAMAGE)](content, generator)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{number:03d}{suffix}"
    path.write_bytes(content)
    return path


def _piece(generator: np.random.Generator) -> Image.Image:
    """A piece of one of scikit-learn's two photographs."""
    pixels_HWC = _photographs()[int(generator.integers(2))]
    height, width = (int(side) for side in generator.integers(40, 97, 2))
    top, left = (int(generator.integers(limit)) for limit in (427 - height, 640 - width))
    return Image.fromarray(pixels_HWC[top : top + height, left : left + width])


@cache
def _photographs() -> list[np.ndarray]:
    return load_sample_images().images


def _flip(content: bytearray, generator: np.random.Generator, bits: int, within: int | None = None) -> bytearray:
    for bit in generator.integers(0, 8 * min(len(content), within or len(content)), bits).tolist():
        content[bit // 8] ^= 1 << bit % 8
    return content


def _flip_one(content: bytearray, generator: np.random.Generator) -> bytearray:
    return _flip(content, generator, 1)


def _flip_many(content: bytearray, generator: np.random.Generator) -> bytearray:
    return _flip(content, generator, 40)


def _flip_header(content: bytearray, generator: np.random.Generator) -> bytearray:
    return _flip(content, generator, 4, within=200)


def _cut(content: bytearray, generator: np.random.Generator) -> bytearray:
    return content[: int(generator.integers(len(content)))]


def _zero_page(content: bytearray, generator: np.random.Generator) -> bytearray:
    start = int(generator.integers(max(1, len(content) // PAGE))) * PAGE
    content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))
    return content


DAMAGE = (_flip_one, _flip_many, _flip_header, _cut, _zero_page)
