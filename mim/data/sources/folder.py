"""Folder: images in class folders, in other folders without labels, or in a list file."""

import logging
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from mim.data.decoding.images import decode, decode_reduced
from mim.data.decoding.names import encoded, printable_name
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Split, Stored, unreachable
from mim.data.sources.held_out import by_share, check_share
from mim.data.sources.listing import list_images
from mim.registry import one_of

LOG = logging.getLogger("mim")

PROBED = 8  # images that are looked for after one could not be read


class Folder(Source, name="folder"):
    """Images of a folder or a list file. DATA.path is one of these:

    - a folder with `train/` (and `val/`) in it: these are the splits;
    - any other folder: all images in it and below;
    - a text file: one path a line, relative to the folder of the file, with a label after a tab where there is one.

    Args:
        val_path: a folder or list file of held-out images, where they are not below DATA.path.
        val_share: share of the images that is held out where there are no held-out images, from 0 to below 1. A hash of
            the file name decides, so that a file that is added or removed moves no other.
        labels: `folders` takes the first folder below the root as the label; `none` gives no labels; `auto` is
            `folders` where every image is exactly one folder deep and there are at least two folders, else `none`.

    Raises ValueError where a path does not exist or holds no images. With labels `folders`, also where an image has no
    label, or a held-out image has a label that no training image has.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        val_path: str = "",
        val_share: float = 0.05,
        labels: Literal["auto", "folders", "none"] = "auto",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        if not settings.path:
            raise ValueError("DATA.path is empty: name a folder of images or a text file that lists them")
        root = Path(settings.path)
        train_root = root / "train" if (root / "train").is_dir() else root
        val_root = Path(val_path) if val_path else root / "val" if (root / "val").is_dir() else None
        train, names = list_images(train_root, "DATA.path", labels, warn=split == "train")
        strict = labels == "folders" or (val_root is not None and val_root.is_file())
        self._root = (train_root, "DATA.path")
        if val_root is None or (not val_path and train_root == root):
            positions = by_share(_hashes([path for path, _ in train], train_root), val_share, split)
            entries = [train[position] for position in positions]
        else:
            val_key = "DATA.val_path" if val_path else "DATA.path"
            val_labels = ("folders" if strict else "any") if names else "none"
            held_out = list_images(val_root, val_key, val_labels, warn=split == "val")[0]
            held_out_paths = {path for path, _ in held_out}
            self._root = (val_root, val_key) if split == "val" else self._root
            entries = held_out if split == "val" else [entry for entry in train if entry[0] not in held_out_paths]
        self.paths = [path for path, _ in entries]
        self._set_labels([label for _, label in entries], names, strict)
        self._was_folder = self._root[0].is_dir()
        self._was_reachable = not self._unreachable_images()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Stored:
        return decode(self.paths[index], self.settings.channels)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(self.paths[index], self.settings.channels, need_of)

    def describe(self, index: int) -> str:
        return printable_name(self.paths[index])

    def label_origin(self) -> str:
        root, key = self._root
        kind = "class folders" if self._was_folder else "labels in the second column"
        return f"the {kind} of {key} {printable_name(root)}"

    def missing(self) -> str:
        """Also looks at some images, because links and lists lead to other folders."""
        root, key = self._root
        reason = unreachable(root) if self._was_folder else ""
        if not reason and self._was_reachable:
            reason = self._unreachable_images()
        return reason and f"{key} {printable_name(root)}: {reason}"

    def _unreachable_images(self) -> str:
        """Why none of some images, evenly spread, can be reached; empty where one can."""
        probed = self.paths[:: max(1, len(self.paths) // PROBED)][:PROBED]
        reasons = [reason for path in probed if (reason := unreachable(path))]
        if not probed or len(reasons) < len(probed):
            return ""
        return f"none of {len(probed)} images tried is there ({reasons[0]})"

    def _set_labels(self, labels: list[str | None], classes: list[str], strict: bool) -> None:
        names = [label for label in labels if label is not None]
        if not classes or len(names) < len(labels):
            return
        number_of = {name: number for number, name in enumerate(classes)}
        unknown = next((label for label in names if label not in number_of), None)
        if unknown is not None:
            message = f"held-out images have the label {printable_name(unknown)!r}, which no training image has"
            if strict:
                raise ValueError(f"{message}: {one_of(unknown, classes)}")
            LOG.warning("%s: they are read without labels", message)
            return
        self.classes = tuple(map(printable_name, classes))
        self.labels = np.asarray([number_of[label] for label in names], dtype=np.int64)


def _hashes(paths: list[Path], root: Path) -> np.ndarray:
    base = root if root.is_dir() else root.parent
    return np.asarray([zlib.crc32(encoded(os.path.relpath(path, base))) for path in paths], np.uint32)
