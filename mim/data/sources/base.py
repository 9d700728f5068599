"""Source: the family of parts that know where images come from; and the DATA keys that every source shares.

Shapes: C channels, H W pixels.
"""

import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from mim.data.settings import DataSettings
from mim.registry import Component

Split = Literal["train", "val"]
Stored = Image.Image | Tensor


@dataclass(frozen=True, slots=True)
class Need:
    """What of a stored image is enough: its sides may be divided by `by`, and rows from `rows` on may be missing."""

    by: float
    rows: int


Enough = Callable[[int, int], Need]  # of a stored image of that height and width


class Source(Component, ABC, section="DATA"):
    """One split of a data set: images by index, with labels where there are any.

    Keyword-only arguments of a subclass are DATA keys of its own, beside the shared ones.

    Attributes: labels, (samples,) int64 or None; classes, the name of each label.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    _is_place = False

    def __init__(self, split: Split, settings: DataSettings):
        quiet_decoders()
        self.split, self.settings = split, settings
        self._is_place = bool(settings.path) and os.path.exists(settings.path)  # and no name on a hub, say

    @abstractmethod
    def __len__(self) -> int:
        """Number of images; 0 for a validation split that the data set does not have."""

    @abstractmethod
    def read(self, index: int) -> Stored:
        """An image in its stored type: an 8-bit PIL image, or a tensor (C, H, W) of uint8, uint16 or float32.

        Raises BrokenImage where it cannot be read.
        """

    def read_reduced(self, index: int, enough: Enough) -> tuple[Stored, tuple[int, int]]:
        """An image, decoded only as far as is enough where that saves time, and its stored height and width.

        It is then a uint8 tensor wherever `read` gives an 8-bit picture, or that picture. This default reads the image
        whole. Raises BrokenImage as `read` does.
        """
        stored = self.read(index)
        return stored, sides(stored)

    def describe(self, index: int) -> str:
        """The file, or whatever else names this sample to a person, on one line."""
        return f"{self.name} {self.split} image {index}"

    def missing(self) -> str:
        """Why no image can be reached now, naming the key of the place; empty where there is no reason.

        It is asked where reading an image has failed with an error of the system, so that a mount that is gone is told
        from a file that is. This default looks at DATA.path, if that was there at the start: whether it still is and,
        as a folder, holds anything.
        """
        reason = gone(Path(self.settings.path)) if self._is_place else ""
        return reason and f"DATA.path {self.settings.path}: {reason}"


def quiet_decoders() -> None:
    """Keeps Pillow's warnings of odd files off the console, as long as this process lives: what matters is counted."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def gone(path: Path) -> str:
    """Why a file or folder cannot be reached now, or that a folder is empty; an empty text where all is well."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            with os.scandir(path) as entries:
                return "" if next(entries, None) is not None else "it is empty"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def sides(image: Stored) -> tuple[int, int]:
    """Height and width."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[-2], image.shape[-1])
