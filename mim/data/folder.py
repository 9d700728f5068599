"""Folder: images in class folders, in nested or flat folders without labels, or named by a list file."""

import logging
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from mim.data.base import DataSettings, Enough, Source, Split, Stored
from mim.data.images import EXTENSIONS, decode, decode_reduced
from mim.registry import one_of

LOG = logging.getLogger("mim")


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
        if not settings.path:
            raise ValueError("DATA.path is empty: name a folder of images or a text file that lists them")
        if not 0 <= val_share < 1:
            raise ValueError(f"DATA.val_share is {val_share}: it is a share, from 0 up to but not including 1")
        root = Path(settings.path)
        train_root = root / "train" if (root / "train").is_dir() else root
        val_root = Path(val_path) if val_path else root / "val" if (root / "val").is_dir() else None
        train, names = _list_images(train_root, "DATA.path", labels)
        strict = labels == "folders" or (val_root is not None and val_root.is_file())
        if val_root is None or (not val_path and train_root == root):
            held = _held_out([entry[0] for entry in train], train_root, val_share)
            chosen = [entry for entry in train if (entry[0] in held) == (split == "val")]
        else:
            val_key = "DATA.val_path" if val_path else "DATA.path"
            held_out = _list_images(val_root, val_key, ("folders" if strict else "any") if names else "none")[0]
            held = {path for path, _ in held_out}
            chosen = held_out if split == "val" else [entry for entry in train if entry[0] not in held]
        self.paths = [path for path, _ in chosen]
        self._set_labels([label for _, label in chosen], names, strict)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Stored:
        return decode(self.paths[index], self.settings.channels)

    def read_reduced(self, index: int, enough: Enough) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(self.paths[index], self.settings.channels, enough)

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def _set_labels(self, found: list[str | None], classes: list[str], strict: bool) -> None:
        named = [label for label in found if label is not None]
        if not classes or len(named) < len(found):
            return
        place = {name: number for number, name in enumerate(classes)}
        unknown = next((label for label in named if label not in place), None)
        if unknown is not None:
            message = f"held-out images have the label {unknown!r}, which no training image has"
            if strict:
                raise ValueError(f"{message}: {one_of(unknown, classes)}")
            LOG.warning("%s: they are taken as unlabelled", message)
            return
        self.classes = tuple(classes)
        self.labels = np.asarray([place[label] for label in named], dtype=np.int64)


Entry = tuple[Path, str | None]


def _list_images(root: Path, key: str, labels: str) -> tuple[list[Entry], list[str]]:
    """Every image with its label, in a fixed order, and the sorted labels (none where images are unlabelled).

    labels: as in Folder, or `any`, which takes each label that there is.
    """
    if not root.exists():
        raise ValueError(f"{key} {root} does not exist")
    root = root.absolute()  # so that a list of chosen images can be read from anywhere
    entries = _from_file(root) if root.is_file() else _from_folder(root)
    if not entries:
        raise ValueError(f"{key} {root} holds no images: looked in it and below for {' '.join(sorted(EXTENSIONS))}")
    names = sorted({label for _, label in entries if label is not None})
    if labels == "none":
        return [(path, None) for path, _ in entries], []
    if labels == "auto" and root.is_dir():
        depths = {len(path.relative_to(root).parts) for path, _ in entries}
        if depths != {2} or len(names) < 2:
            return [(path, None) for path, _ in entries], []
    unlabelled = next((path for path, label in entries if label is None), None)
    if labels == "folders" and unlabelled is not None:
        raise ValueError(
            f"DATA.labels folders: {unlabelled} has no label, neither a folder below {root} nor one in a list"
        )
    return entries, names


def _from_folder(root: Path) -> list[Entry]:
    entries: list[Entry] = []
    seen: set[str] = set()  # links are followed, and a loop of links is walked once
    for folder, below, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not file.startswith("."):
                path = Path(folder, file)
                parts = path.relative_to(root).parts
                entries.append((path, parts[0] if len(parts) > 1 else None))
    return entries


def _from_file(file: Path) -> list[Entry]:
    entries: list[Entry] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            path, _, label = line.partition("\t")
            entries.append((file.parent / path, label or None))
    return entries


def _held_out(paths: list[Path], root: Path, share: float) -> set[Path]:
    base = root if root.is_dir() else root.parent
    place = {path: zlib.crc32(os.path.relpath(path, base).encode()) / 2**32 for path in paths}
    held = {path for path in paths if place[path] < share}
    return held or ({min(paths, key=place.__getitem__)} if share else set())
