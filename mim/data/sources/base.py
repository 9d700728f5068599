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

from mim.io.checks import at_least
from mim.registry import Component

Split = Literal["train", "val"]
Stored = Image.Image | Tensor


@dataclass(frozen=True, slots=True)
class Need:
    """What of a stored image is enough: its sides may be divided by `by`, and rows from `rows` on may be missing."""

    by: float
    rows: int


Enough = Callable[[int, int], Need]  # of a stored image of that height and width


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The DATA keys that every source shares.

    path: where the source looks, as it documents; image_size: height and width in pixels that the model sees;
    channels: of an image; mean, std: per channel, on images scaled to [0, 1] (floats as they are), or `estimate`;
    batch_size: micro-batch of one device; repeats: crops that an epoch shows of each image it reads, in neighbouring
    rows of a batch; workers: loader processes of one device; max_broken: share of unreadable files of the data set
    above which a run stops (a single one never stops it); retry_s: seconds that reading waits for a place that is gone,
    such as a mount, to come back before the run ends.
    """

    path: str = ""
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] | Literal["estimate"] = "estimate"
    std: tuple[float, ...] | Literal["estimate"] = "estimate"
    batch_size: int = 64
    repeats: int = 1
    workers: int = 4
    max_broken: float = 0.01
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        at_least("DATA", 1, channels=self.channels, batch_size=self.batch_size, repeats=self.repeats)
        at_least("DATA", 0, workers=self.workers)
        if self.batch_size % self.repeats:
            raise ValueError(
                f"DATA.batch_size is {self.batch_size} and DATA.repeats {self.repeats}: the crops of an image stay in "
                "one batch, so DATA.batch_size must be a multiple of DATA.repeats"
            )
        if min(self.image_size) < 1:
            raise ValueError(f"DATA.image_size is {list(self.image_size)}: height and width must be at least 1")
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"DATA.max_broken is {self.max_broken}: it is a share, from 0 to 1")
        if not 0 <= self.retry_s < float("inf"):
            raise ValueError(f"DATA.retry_s is {self.retry_s}: it is a number of seconds, 0 for none")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values != "estimate" and len(values) != self.channels:
                raise ValueError(
                    f"DATA.{key} has {len(values)} numbers and DATA.channels is {self.channels}: "
                    "give one number a channel, or estimate"
                )
        if (self.mean == "estimate") != (self.std == "estimate"):
            raise ValueError("DATA.mean and DATA.std: give numbers for both, or estimate both")
        if self.std != "estimate" and min(self.std) <= 0:
            raise ValueError(f"DATA.std is {list(self.std)}: every number must be positive")


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
