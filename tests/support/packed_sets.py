"""Packed data sets of small folders, and what they hold."""

from pathlib import Path

import torch
from small_data import write_digits
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data.settings import DataSettings
from mim.data.sources.base import Need, Source
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack

AS_IS = PackSettings(short_side=0)


def full_image(height: int, width: int) -> Need:
    """All of an image is needed."""
    return Need(1.0, height)


def quiet(done: int) -> None:
    """Nobody watches."""


def packed(
    path: Path, out: Path, settings: PackSettings = AS_IS, channels: int = 1, share: float = 0, **keys: object
) -> Path:
    """The folder's images, packed."""
    shared = DataSettings(path=str(path), channels=channels)
    pack({split: Folder(split, shared, val_share=share, **keys) for split in ("train", "val")}, out, settings, quiet)
    return out


def source(out: Path, split: str = "train", channels: int = 1, **keys: object) -> Packed:
    return Packed(split, DataSettings(path=str(out), channels=channels), **keys)


def pixels(images: Source, index: int) -> torch.Tensor:
    """(C, H, W), whatever the source reads."""
    stored = images.read(index)
    return stored if isinstance(stored, torch.Tensor) else pil_to_tensor(stored)


def write_classes(root: Path, each: int = 6) -> Path:
    for number, name in enumerate(("five", "four", "three")):
        write_digits(root / name, each, first=each * number)
    return root
