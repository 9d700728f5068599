"""Folder: images in class folders, in nested or flat folders without labels, or named by a list file."""

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

TRIED = 8  # images that are looked for where one cannot be read


class Folder(Source, name="folder"):
    """Images below DATA.path, or named by it.

    - a folder with `train/` (and `val/`) in it: those are the splits;
    - any other folder: all images in it and below;
    - a text file: one path a line, relative to the file's own folder, optionally followed by a tab and a label.

    Args:
        val_path: a folder or text file of held-out images, where they lie elsewhere.
        val_share: without held-out images of their own, this share is held out, chosen by a hash of the file's
            name, so that a file that joins or leaves moves no other; 0 holds none out.
        labels: `folders` takes the first folder below the root for the label, `none` ignores folders, `auto` does
            the first where every image lies exactly one folder deep and there are at least two folders.

    Raises ValueError where a path does not exist or holds no images, and, under `labels: folders`, where an image has
    no label or a held-out one a label that no training image has.
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
        train, names = list_images(train_root, "DATA.path", labels, tell=split == "train")
        strict = labels == "folders" or (val_root is not None and val_root.is_file())
        self._place = (train_root, "DATA.path")
        if val_root is None or (not val_path and train_root == root):
            places = by_share(_hashes([path for path, _ in train], train_root), val_share, split)
            chosen = [train[place] for place in places]
        else:
            val_key = "DATA.val_path" if val_path else "DATA.path"
            wanted = ("folders" if strict else "any") if names else "none"
            held_out = list_images(val_root, val_key, wanted, tell=split == "val")[0]
            held = {path for path, _ in held_out}
            self._place = (val_root, val_key) if split == "val" else self._place
            chosen = held_out if split == "val" else [entry for entry in train if entry[0] not in held]
        self.paths = [path for path, _ in chosen]
        self._set_labels([label for _, label in chosen], names, strict)
        self._was_folder = self._place[0].is_dir()
        self._was_there = not self._none_there()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Stored:
        return decode(self.paths[index], self.settings.channels)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(self.paths[index], self.settings.channels, need_of)

    def describe(self, index: int) -> str:
        return printable_name(self.paths[index])

    def missing(self) -> str:
        """Whether the folder is there and not empty; and, as links and lists lead elsewhere, any of some images."""
        root, key = self._place
        reason = unreachable(root) if self._was_folder else ""
        if not reason and self._was_there:
            reason = self._none_there()
        return reason and f"{key} {printable_name(root)}: {reason}"

    def _none_there(self) -> str:
        """Why none of some images, evenly spread, is there; empty where one is."""
        spread = self.paths[:: max(1, len(self.paths) // TRIED)][:TRIED]
        reasons = [reason for path in spread if (reason := unreachable(path))]
        if not spread or len(reasons) < len(spread):
            return ""
        return f"none of {len(spread)} images tried is there ({reasons[0]})"

    def _set_labels(self, found: list[str | None], classes: list[str], strict: bool) -> None:
        named = [label for label in found if label is not None]
        if not classes or len(named) < len(found):
            return
        place = {name: number for number, name in enumerate(classes)}
        unknown = next((label for label in named if label not in place), None)
        if unknown is not None:
            message = f"held-out images have the label {printable_name(unknown)!r}, which no training image has"
            if strict:
                raise ValueError(f"{message}: {one_of(unknown, classes)}")
            LOG.warning("%s: they are taken as unlabelled", message)
            return
        self.classes = tuple(map(printable_name, classes))
        self.labels = np.asarray([place[label] for label in named], dtype=np.int64)


def _hashes(paths: list[Path], root: Path) -> np.ndarray:
    base = root if root.is_dir() else root.parent
    return np.asarray([zlib.crc32(encoded(os.path.relpath(path, base))) for path in paths], np.uint32)
