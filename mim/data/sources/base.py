"""Source: the family of parts that read images, one for each format of data sets.

Shapes: C channels, H W pixels, K classes or columns of numbers.
"""

import os
import stat
import tempfile
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from mim.data.decoding.broken import Notes
from mim.data.settings import DataSettings
from mim.registry import Component
from mim.structures import LabelKind, LabelSpec

Split = Literal["train", "val"]
Stored = Image.Image | Tensor
# what numpy and zipfile raise for a damaged npz file; the last where it claims to be encrypted, or compressed otherwise
DAMAGED_INDEX = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
MOST_CLASSES = 2**20  # without names; more numbers than that are measurements or identities
PROBED = 8  # paths that are looked for after one could not be read


@dataclass(frozen=True, slots=True)
class Need:
    """What decoding must keep of an image."""

    reduction: float  # the number by which its sides may be divided
    rows: int  # the rows, from the top, that must be there


NeedOf = Callable[[int, int], Need]  # from the height and width of a stored image


class Source(Component, ABC, section="DATA"):
    """One split of a data set: images by index, with labels where there are any.

    Keyword-only arguments of a subclass are its own DATA keys, in addition to those of DataSettings.

    Attributes: labels, by the kind of `label_spec`: class, (samples,) int64; classes, (samples, K) float32 of 0 and 1;
    number, (samples, K) float32; None where there are none, and for masks. classes, the name of each label of kind
    class; empty where they are numbered. groups, (samples,) int64, equal for images that belong together, or None.
    held_out_share, the share by which a hash of the name chose held-out images; None where the data set names them.
    chooses_channels, whether it follows DATA.channels_from. contents, what files its folder holds, in words; empty
    where it has none.

    Raises ValueError where DATA.channels_from is set and the source does not follow it.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    held_out_share: float | None = None
    chooses_channels = False
    contents = ""
    _is_path = False

    def __init__(self, split: Split, settings: DataSettings):
        quiet_decoders()
        if settings.channels_from != "all" and not self.chooses_channels:
            raise ValueError(
                f"DATA.channels_from is {list(settings.channels_from)}, and DATA.name {self.name} does not choose "
                "among channels: leave it out"
            )
        self.split, self.settings = split, settings
        self._is_path = bool(settings.path) and os.path.exists(settings.path)  # and not a name on a hub

    @abstractmethod
    def __len__(self) -> int:
        """Number of images; 0 for a validation split that the data set does not have."""

    @abstractmethod
    def read(self, index: int) -> Stored:
        """An image in its stored type: an 8-bit PIL image, or a tensor (C, H, W) of uint8, uint16 or float32.

        Raises BrokenImage where it cannot be read.
        """

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        """An image, decoded only as far as needed where that saves time, and its stored height and width.

        It is a uint8 tensor or an 8-bit picture where `read` gives an 8-bit picture. This default reads the full image.
        Raises BrokenImage as `read` does.
        """
        stored = self.read(index)
        return stored, size_of(stored)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Is told which images are read next. A source that waits long for each may wait for all at once here."""

    @property
    def label_spec(self) -> LabelSpec | None:
        """What the labels are; None where there are none. This default is one class for each image.

        Raises ValueError where classes have no names, and their numbers are so large that they can be none.
        """
        if self.labels is None:
            return None
        count = 1 + int(self.labels.max()) if len(self.labels) else 0
        if count > MOST_CLASSES and not self.classes:
            raise ValueError(
                f"{self.label_origin()} are numbers up to {count - 1:,}, and a classifier has an output for each: "
                "number the classes from 0"
            )
        return LabelSpec("class", self.classes or tuple(map(str, range(count))))

    @property
    def label_kind(self) -> LabelKind | None:
        """The kind of `label_spec`, without the names of its classes."""
        if self.labels is not None and self.labels.ndim == 1:
            return "class"
        spec = self.label_spec
        return None if spec is None else spec.kind

    def mask(self, index: int) -> np.ndarray:
        """The class of each pixel of an image, (H, W) int64 of its stored size, -1 for none; where the kind is mask.

        Raises BrokenImage where it cannot be read.
        """
        raise TypeError(f"{type(self).__name__} has labels of kind {self.label_kind}, and only kind mask has masks")

    def describe(self, index: int) -> str:
        """The file of a sample, or another name that a person understands, on one line."""
        return f"{self.name} {self.split} image {index}"

    def label_origin(self) -> str:
        """Where the labels come from, as the subject of a sentence: `the labels of ...`."""
        return f"the labels of DATA.name {self.name}"

    @cached_property
    def say(self) -> Notes:
        """Says each note on its files once, in this process and the workers that read for it."""
        return Notes()

    def missing(self) -> str:
        """Why no image can be reached now, with the key of the path; empty where there is no reason.

        It is called after an image could not be read because of a system error, to tell lost storage from a lost file.
        This default checks DATA.path, if that existed at the start: whether it still exists and, as a folder, holds
        anything.
        """
        reason = unreachable(Path(self.settings.path)) if self._is_path else ""
        return reason and f"DATA.path {self.settings.path}: {reason}"


def quiet_decoders() -> None:
    """Keeps warnings of Pillow (about unusual files, which are counted elsewhere) and torchvision off the console."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", module=r"torchvision\.io\.")


def cache_folder(kind: str) -> Path:
    """The folder of this user for indices of a kind. It lies in the temporary folder for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = str(Path.home() / ".cache")
        except RuntimeError:  # a number without a name, as in containers
            cache = os.path.join(tempfile.gettempdir(), f"cache-{getattr(os, 'getuid', os.getpid)()}")
    return Path(cache) / "mim-toolkit" / kind


def unreachable(path: Path) -> str:
    """Why a file or folder cannot be reached, or that a folder is empty; empty where all is well."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            with os.scandir(path) as entries:
                return "" if next(entries, None) is not None else "it is empty"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def size_of(image: Stored) -> tuple[int, int]:
    """Height and width."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[-2], image.shape[-1])


def none_reachable(paths: Sequence[Path]) -> tuple[list[Path], str]:
    """Some of these paths, evenly spread, and why none of them can be reached; an empty reason where one can."""
    probed = list(paths[:: max(1, len(paths) // PROBED)][:PROBED])
    reasons = [reason for path in probed if (reason := unreachable(path))]
    return probed, reasons[0] if probed and len(reasons) == len(probed) else ""
