"""Listing: the images of a folder or a list file, with their labels, in a fixed order. No image is opened.

A name may hold any bytes; in a list, any but a line break. A pipe, a socket or a device with the name of an image is
left out, with a warning. A link that leads nowhere is listed, and is broken when it is read.
Shapes: F folders, N images.
"""

import logging
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mim.data.decoding.images import EXTENSIONS
from mim.data.decoding.names import printable_name
from mim.data.sources.kinds import contents_text
from mim.data.sources.list_file import ListFile, read_list
from mim.data.sources.names import ImageFiles, Names, Paths
from mim.data.sources.once import once
from mim.data.sources.tree import FolderTree, Walk, walk
from mim.data.sources.tree_index import read_index, write_index

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Images in order, with their labels."""

    files: ImageFiles
    hash_N: np.ndarray  # uint32: CRC-32 of each path relative to the folder, or to the folder of the list
    label_N: np.ndarray  # int64: position in `names`; -1 where an image has none
    names: tuple[str, ...]  # sorted; empty where images have no labels
    are_folders: bool = True  # whether labels are names of folders, and not written in a list
    contents: str = ""  # what files a folder holds, in words

    def __len__(self) -> int:
        return len(self.label_N)

    def paths(self) -> Paths:
        """All paths."""
        return Paths(self.files, np.arange(len(self)))


def list_images(root: Path, key: str, labels: str, warn: bool = True, index: bool = False) -> Listing:
    """Every image with its label, in a fixed order.

    Args:
        root: a folder or a list file.
        key: the config key that names it, for errors.
        labels: as in Folder; `any` takes every label that there is.
        warn: log what is unusual.
        index: use the index of a folder, and keep one of a large folder.

    Raises ValueError where `root` does not exist, cannot be listed, or names no images.
    """
    if not root.exists():
        raise ValueError(f"{key} {printable_name(root)} does not exist")
    root = root.absolute()  # so that a list of chosen images can be read from anywhere
    try:
        contents = once(root, lambda: _list_folder(root, index) if root.is_dir() else read_list(root, key))
    except OSError as error:
        raise ValueError(f"{key} {printable_name(root)} cannot be listed: {printable_name(str(error))}") from error
    if isinstance(contents, Walk):
        listing = _of_folder(root, contents.tree, labels)
        if warn:
            _warn_of(contents.special, "have the names of images and are pipes, sockets or devices: they are left out")
            _warn_of(contents.forbidden, "are folders that may not be read: their images are left out")
    else:
        listing = _of_list(contents, labels)
    if not len(listing):
        looked = f"looked in it and below for {' '.join(sorted(EXTENSIONS))}"
        why = "a list has the path of an image in each line" if isinstance(contents, ListFile) else looked
        raise ValueError(f"{key} {printable_name(root)} holds no images: {why}")
    unlabelled_N = np.flatnonzero(listing.label_N < 0)
    if labels == "folders" and len(unlabelled_N):
        way_out = f"a folder below {printable_name(root)}"
        if isinstance(contents, ListFile):
            way_out = "a label after a tab" if contents.written else "a folder in its path, or a label after a tab"
        path = printable_name(listing.files.path(int(unlabelled_N[0])))
        raise ValueError(
            f"DATA.labels folders: {path} has no label: it needs {way_out}. "
            "Pretraining needs no labels: DATA.labels none"
        )
    if warn:
        if listing.names and not listing.are_folders:
            _warn_of_unlabelled(listing, key)
        _warn_of_similar(listing.names, key)
    return listing


def _list_folder(root: Path, index: bool) -> Walk:
    result = walk(root, read_index(root) if index else None)
    if index and result.settled and os.environ.get("LOCAL_RANK", "0") == "0":  # one process of a machine is enough
        write_index(root, result.tree)
    return result


def _of_folder(root: Path, tree: FolderTree, labels: str) -> Listing:
    """The first folder below the root is the label."""
    count_F = np.diff(tree.image_end_F, prepend=0)
    relative = [tree.folders[row] for row in range(len(tree.folders))]
    files = ImageFiles(
        Names.of(os.path.join(root, folder) if folder else str(root) for folder in relative),
        tree.images,
        np.repeat(np.arange(len(relative), dtype=np.int32), count_F),
    )
    parts = [folder.split(os.sep) if folder else [] for folder in relative]
    label_of = [folder_parts[0] if folder_parts else "" for folder_parts in parts]
    every = Listing(files, tree.hash_N, np.full(len(files.folder_N), -1), (), contents=contents_text(tree.kinds))
    listing = _labelled(every, label_of, count_F)
    depths = {len(parts[row]) for row in np.flatnonzero(count_F)}
    if labels == "none" or (labels == "auto" and (depths != {1} or len(listing.names) < 2)):
        return _without_labels(listing)
    return listing


def _of_list(content: ListFile, labels: str) -> Listing:
    """The text after the tab is the label; where no line has one, the folder that holds the image."""
    names = sorted(content.written)
    position = {name: number for number, name in enumerate(names)}
    number_of = np.array([*(position[name] for name in content.written), -1], np.int64)
    listing = Listing(content.files, content.hash_N, number_of[content.written_N], tuple(names), not content.written)
    if labels == "none" or content.written:
        return _without_labels(listing) if labels == "none" else listing
    folders = content.files.folders
    count_F = np.bincount(content.files.folder_N, minlength=len(folders))
    if labels == "auto":
        above = {os.path.dirname(folders[row]) for row in range(len(folders))}
        if len(above) > 1 or len(set(content.folder_names)) < 2 or not all(content.folder_names):
            return listing
    return _labelled(listing, content.folder_names, count_F)


def _labelled(listing: Listing, label_of: Iterable[str], count_F: np.ndarray) -> Listing:
    """The label of each folder for its images; an empty one is none."""
    label_of = list(label_of)
    names = sorted({label_of[row] for row in np.flatnonzero(count_F)} - {""})
    position = {name: number for number, name in enumerate(names)}
    number_F = np.array([position.get(label, -1) for label in label_of], np.int64)
    return replace(listing, label_N=number_F[listing.files.folder_N], names=tuple(names))


def _without_labels(listing: Listing) -> Listing:
    return replace(listing, label_N=np.full(len(listing), -1), names=())


def _warn_of(paths: list[str], what: str) -> None:
    if paths:
        LOG.warning("%s %s, such as %s", f"{len(paths):,}", what, printable_name(paths[0]))


def _warn_of_unlabelled(listing: Listing, key: str) -> None:
    rows = np.flatnonzero(listing.label_N < 0)
    if len(rows):
        counts, path = f"{len(rows):,} of {len(listing):,}", printable_name(listing.files.path(int(rows[0])))
        message = "%s: %s images have no label, such as %s: a split that holds one is read without labels"
        LOG.warning(message, key, counts, path)


def _warn_of_similar(names: Iterable[str], key: str) -> None:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), name)
        if other != name:
            pair = printable_name(other), printable_name(name)
            LOG.warning("%s: the labels %r and %r look alike and are two classes", key, *pair)
