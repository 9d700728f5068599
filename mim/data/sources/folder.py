"""Folder: images in class folders, in other folders without labels, or in a list file.

Shapes: N images.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from mim.data.decoding.images import decode, decode_reduced
from mim.data.decoding.names import printable_name
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Split, Stored, none_reachable, unreachable
from mim.data.sources.held_out import by_share, check_share
from mim.data.sources.listing import Listing, list_images
from mim.data.sources.names import Paths
from mim.data.sources.once import listing_once
from mim.registry import one_of

LOG = logging.getLogger("mim")


class Folder(Source, name="folder"):
    """Images of a folder or a list file. DATA.path is one of these:

    - a folder with `train/` (and `val/`) in it: these are the splits;
    - any other folder: all images in it and below;
    - a text file: one path a line, absolute or relative to the folder of the file, with a label after a tab where
      there is one.

    Args:
        val_path: a folder or list file of held-out images, where they are not below DATA.path.
        val_share: share of the images that is held out where there are no held-out images, from 0 to below 1. A hash of
            the file name decides, so that a file that is added or removed moves no other.
        labels: `folders` takes the first folder below the root as the label; `none` gives no labels; `auto` is
            `folders` where every image is exactly one folder deep and there are at least two folders, else `none`. In a
            list, the texts after the tabs are the labels, but for `none`; where no line has one, it is the folder that
            holds the image, and `auto` takes it where all images lie in two or more folders of one folder.
        index: keep an index of a folder with 10,000 images or more, so that it is listed faster the next time; beside
            the folder, or else in the cache folder. A folder that has changed is listed anew: its times tell. false
            always lists.

    Raises ValueError where a path does not exist or holds no images. With labels `folders`, also where an image has no
    label, or a held-out image has a label that no training image has.
    """

    chooses_channels = True

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        val_path: str = "",
        val_share: float = 0.05,
        labels: Literal["auto", "folders", "none"] = "auto",
        index: bool = True,
    ):
        super().__init__(split, settings)
        check_share(val_share)
        if not settings.path:
            raise ValueError("DATA.path is empty: name a folder of images or a text file that lists them")
        root = Path(settings.path)
        train_root = root / "train" if (root / "train").is_dir() else root
        val_root = Path(val_path) if val_path else root / "val" if (root / "val").is_dir() else None
        with listing_once():
            train = list_images(train_root, "DATA.path", labels, split == "train", index)
            strict = labels == "folders" or (val_root is not None and val_root.is_file())
            self._root, listing = (train_root, "DATA.path"), train
            if val_root is None or (not val_path and train_root == root):
                rows = by_share(train.hash_N, val_share, split)
                self.held_out_share = val_share
            else:
                val_key = "DATA.val_path" if val_path else "DATA.path"
                val_labels = ("folders" if strict else "any") if train.names else "none"
                held_out = list_images(val_root, val_key, val_labels, split == "val", index)
                if split == "val":
                    self._root, listing, rows = (val_root, val_key), held_out, np.arange(len(held_out))
                else:
                    rows = _not_in(train, held_out)
        self.paths, self.contents = Paths(listing.files, rows), listing.contents
        self._set_labels(listing, rows, train.names, strict)
        self._was_folder, self._has_class_folders = self._root[0].is_dir(), listing.are_folders
        self._was_reachable = not self._unreachable_images()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Stored:
        return decode(self.paths[index], self.settings.channels, self.say, self.settings.selection)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(self.paths[index], self.settings.channels, need_of, self.say, self.settings.selection)

    def describe(self, index: int) -> str:
        return printable_name(self.paths[index])

    def label_origin(self) -> str:
        root, key = self._root
        kind = "class folders" if self._has_class_folders else "labels in the second column"
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
        probed, reason = none_reachable(self.paths)
        return reason and f"none of {len(probed)} images tried is there ({reason})"

    def _set_labels(self, listing: Listing, rows: np.ndarray, classes: tuple[str, ...], strict: bool) -> None:
        label_N = listing.label_N[rows]
        if not classes or (label_N < 0).any():
            return
        number_of = {name: number for number, name in enumerate(classes)}
        own = np.array([number_of.get(name, -1) for name in listing.names], np.int64)
        label_N, own_N = (own[label_N], label_N) if len(own) else (label_N, label_N)
        if (label_N < 0).any():
            unknown = listing.names[int(own_N[label_N < 0][0])]
            message = f"held-out images have the label {printable_name(unknown)!r}, which no training image has"
            if strict:
                raise ValueError(f"{message}: {one_of(unknown, classes)}")
            LOG.warning("%s: they are read without labels", message)
            return
        self.classes, self.labels = tuple(map(printable_name, classes)), label_N


def _not_in(train: Listing, held_out: Listing) -> np.ndarray:
    """The rows of the training images that are not held out; the two may name the same files."""
    number: dict[str, int] = {}
    ours_N, theirs_N = (_folder_numbers(listing, number) for listing in (train, held_out))
    rows, their_rows = np.flatnonzero(np.isin(ours_N, theirs_N)), np.flatnonzero(np.isin(theirs_N, ours_N))
    taken = {(int(theirs_N[row]), held_out.files.names[row]) for row in their_rows.tolist()}
    is_train_N = np.ones(len(train), bool)
    is_train_N[rows] = [(int(ours_N[row]), train.files.names[row]) not in taken for row in rows.tolist()]
    return np.flatnonzero(is_train_N)


def _folder_numbers(listing: Listing, number: dict[str, int]) -> np.ndarray:
    """A number for the folder of each image, the same for the same path."""
    folders = listing.files.folders
    number_F = [number.setdefault(folders[row], len(number)) for row in range(len(folders))]
    return np.array(number_F, np.int64)[listing.files.folder_N]
