"""The index of a folder: a file that keeps its FolderTree from one run to the next.

It lies beside the folder, as `.NAME.mim-index.npz`, or, where nothing can be written there, in the cache folder
($XDG_CACHE_HOME/mim-toolkit or ~/.cache/mim-toolkit). Of two, the newer is read. It only saves time: whether each
folder is as it was is checked when it is walked (mim/data/sources/tree.py), and a file that is damaged is not used.
Several processes may read and write it at once. Shapes: F folders, N images.
"""

import errno
import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.images import EXTENSIONS
from mim.data.decoding.names import encoded, printable_name
from mim.data.sources.base import DAMAGED_INDEX, cache_folder
from mim.data.sources.names import Names
from mim.data.sources.tree import UNKNOWN, FolderTree
from mim.io.files import write_atomically

LOG = logging.getLogger("mim")

LEAST = 10_000  # images from which a folder gets an index: fewer are listed in a moment
VERSION = f"mim-index 2 {' '.join(sorted(EXTENSIONS))}"  # of the file, and of what is listed
# errors of a place without an index, or with one of another user's
ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
SLASH, DOT = b"/."
DTYPES = {"stamp_FS": np.int64, "subfolder_end_F": np.int64, "image_end_F": np.int64, "hash_N": np.uint32}


def index_files(root: Path) -> list[Path]:
    """Where the index of a folder may lie, the best place first."""
    digest = hashlib.sha256(encoded(str(root))).hexdigest()[:32]
    return [root.parent / f".{root.name}.mim-index.npz", cache_folder("folders") / f"{digest}.npz"]


def read_index(root: Path) -> FolderTree | None:
    """The tree that a folder had; None where there is no index. Warns of one that is damaged."""
    for file in sorted(index_files(root), key=_written, reverse=True):
        try:
            return _read(file)
        except _OtherVersion:
            continue
        except DAMAGED_INDEX as error:
            if isinstance(error, OSError) and error.errno in ABSENT:
                continue
            reason = printable_name(str(error))
            LOG.warning("the index %s is damaged (%s): the folder is listed anew", printable_name(file), reason)
    return None


def write_index(root: Path, tree: FolderTree) -> None:
    """Keeps the tree of a folder where it is worth it. Warns where it cannot be written."""
    settled_F = tree.stamp_FS[:, 0] != UNKNOWN[0]
    if np.diff(tree.image_end_F, prepend=0)[settled_F].sum() < LEAST:
        return
    columns: dict[str, Any] = {"version": np.frombuffer(VERSION.encode(), np.uint8)}
    for field in fields(tree):
        value = getattr(tree, field.name)
        if isinstance(value, Names):
            columns |= {f"{field.name}_B": value.bytes_B, f"{field.name}_end": value.end_N}
        else:
            columns[field.name] = value
    for file in index_files(root):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda stream: np.savez(stream, **columns))
        except OSError as error:
            reason = printable_name(str(error))
        else:
            LOG.debug("index: %s", printable_name(file))
            return
    LOG.warning("the index of %s is not kept, so that it is listed anew next time: %s", printable_name(root), reason)


class _OtherVersion(Exception):
    """The file is of another version of this toolkit."""


def _written(file: Path) -> int:
    """The time at which it was written; 0 where it is not there."""
    with suppress(OSError):
        return os.stat(file).st_mtime_ns
    return 0


def _read(file: Path) -> FolderTree:
    """Raises one of DAMAGED_INDEX where it is damaged; the parts of an npz file have checksums."""
    with np.load(file, allow_pickle=False) as arrays:
        if arrays["version"].tobytes() != VERSION.encode():
            raise _OtherVersion
        columns = {}
        for field in fields(FolderTree):
            if field.name in DTYPES:
                columns[field.name] = arrays[field.name]
            else:
                columns[field.name] = Names(arrays[f"{field.name}_B"], arrays[f"{field.name}_end"])
    tree = FolderTree(**columns)
    if not _is_whole(tree):
        raise ValueError("its parts do not fit each other")
    return tree


def _is_whole(tree: FolderTree) -> bool:
    """Whether a tree can be read without an error, and names nothing outside its folder."""
    all_names = tree.folders, tree.subfolders, tree.images, tree.kinds
    if any(names.bytes_B.dtype != np.uint8 or names.end_N.dtype != np.int64 for names in all_names):
        return False
    if any(getattr(tree, name).dtype != dtype for name, dtype in DTYPES.items()):
        return False
    folders = len(tree.folders)
    return (
        tree.stamp_FS.shape == (folders, len(UNKNOWN))
        and tree.hash_N.shape == (len(tree.images),)
        and len(tree.kinds) == folders
        and all(names.are_whole() for names in all_names)
        and _are_ends(tree.subfolder_end_F, folders, len(tree.subfolders))
        and _are_ends(tree.image_end_F, folders, len(tree.images))
        and all(map(_are_names, (tree.subfolders, tree.images)))
    )


def _are_ends(end_F: np.ndarray, folders: int, last: int) -> bool:
    end_F = np.concatenate([[0], end_F])
    return len(end_F) == folders + 1 and end_F[-1] == last and bool((np.diff(end_F) >= 0).all())


def _are_names(names: Names) -> bool:
    """Whether each is the name of a file that is not hidden, in a folder."""
    starts = names.end_N - names.sizes()
    return (
        not (names.bytes_B == SLASH).any()
        and bool((names.sizes() > 0).all())
        and not (names.bytes_B[starts] == DOT).any()
    )
