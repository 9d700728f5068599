"""What several tests need: real digits as pictures and files, a config that builds in milliseconds, and log lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

RECIPE = """\
TASK: pretrain
DATA: {name: digits, image_size: [32, 32], channels: 1, batch_size: 8, workers: 0}
MASKER: {name: random, cell: 8, ratio: 0.75}
ENCODER: {name: vit, hidden: drop, patch: 8, width: 16, depth: 1, heads: 2}
HEAD: {name: transformer, width: 16, depth: 1, heads: 2}
TARGET: {name: pixels, normalize: patch}
LOSS: {name: mse}
"""
FINETUNE = """\
TASK: finetune
DATA: {name: digits, image_size: [32, 32], channels: 1, batch_size: 8, workers: 0}
ENCODER: {name: vit, hidden: none, patch: 8, width: 16, depth: 2, heads: 2}
"""
PROBE = FINETUNE.replace("finetune", "probe")
RECIPES = {"pretrain": RECIPE, "finetune": FINETUNE, "probe": PROBE}


def digit(index: int = 0) -> Image.Image:
    """A real digit as an 8-bit grey picture of 32 x 32."""
    levels_HW = _levels_NHW()[index]
    return Image.fromarray((levels_HW * (255 / 16)).round().astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)


@cache
def _levels_NHW() -> np.ndarray:
    return load_digits().images


def photograph(height: int = 48, width: int = 64) -> Image.Image:
    """A real photograph (scikit-learn's flower), RGB."""
    return _flower().resize((width, height), Image.Resampling.BICUBIC)


@cache
def _flower() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg"))


def write_digits(folder: Path, count: int, first: int = 0, suffix: str = ".png") -> list[Path]:
    """Digits as files digit-000.png, digit-001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"digit-{number:03d}{suffix}" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        digit(number).save(path)
    return paths


def write_noise(folder: Path, classes: int = 1) -> Path:
    """64 arrays of noise, 000.npy onwards, in folders of so many classes where there are several.

    037.npy has a pixel of 1e9, at which fragile_encoder overflows.
    """
    generator = np.random.default_rng(0)
    for number in range(64):
        array_HW = generator.normal(size=(32, 32)).astype(np.float32)
        if number == 37:
            array_HW[5, 5] = 1e9
        class_folder = folder / f"class-{number % classes}" if classes > 1 else folder
        class_folder.mkdir(parents=True, exist_ok=True)
        np.save(class_folder / f"{number:03d}.npy", array_HW)
    return folder


def write_recipe(folder: Path, text: str = RECIPE, name: str = "recipe.yaml") -> Path:
    """A config file."""
    path = folder / name
    path.write_text(text)
    return path


@contextmanager
def logged() -> Iterator[list[str]]:
    """The messages of the logger `mim`, which an earlier run may have cut off from the root logger."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(), logging.getLogger("mim")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
