"""FolderTree: the images of a folder and of all folders below it, listed in a fixed order. No image is opened.

A folder that an earlier tree holds, and that has not changed since, is taken from there. Its times tell: a file that
joins, leaves or gets another name changes them. Where times do not tell all, the folder is listed anew each time: it
holds links (they lead elsewhere), pipes, sockets or devices; it changed within the last seconds; or it lies on a file
system of FUSE, such as an object store, where the times of folders may stand still.
Shapes: F folders, N images.
"""

import os
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim.data.decoding.images import EXTENSIONS
from mim.data.decoding.names import encoded
from mim.data.sources.kinds import kind_of, written
from mim.data.sources.names import Names

SETTLED_NS = 3_000_000_000  # age from which a folder's times tell: file systems count in steps of up to 2 s
MOUNTS = Path("/proc/self/mountinfo")
UNKNOWN = (-1, -1, -1)  # stamp of a folder that is to be listed anew

Stamp = tuple[int, int, int]  # times of change in ns, of content and of properties, and the number of the folder


@dataclass(frozen=True, slots=True, eq=False)
class FolderTree:
    """All images below a folder, folder by folder, in the order of the walk."""

    folders: Names  # relative to the root, which is the first, as ""
    stamp_FS: np.ndarray  # int64: the Stamp of each folder
    subfolders: Names  # names of the folders in each folder
    subfolder_end_F: np.ndarray  # int64: where those of each folder end
    images: Names  # names of the images in each folder
    image_end_F: np.ndarray  # int64
    hash_N: np.ndarray  # uint32: CRC-32 of each image's path relative to the root
    kinds: Names  # of each folder: what files it holds, as in `.jpg 12,.xml 9`; without those that are hidden


@dataclass(frozen=True, slots=True)
class Walk:
    """A tree, and what was noticed on the way: paths for warnings."""

    tree: FolderTree
    settled: int  # images in folders that were listed, and whose times will tell
    special: list[str]  # pipes, sockets and devices with the name of an image
    forbidden: list[str]  # folders that may not be read


def walk(root: Path, known: FolderTree | None) -> Walk:
    """Lists all images. known: an earlier tree of the root.

    A link that leads nowhere is listed, and is broken when it is read. Raises OSError where a folder cannot be listed.
    """
    walker = _Walker(known)
    walker.walk(str(root))
    return Walk(walker.rows.tree(), walker.settled, walker.special, walker.forbidden)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a folder holds, as it is kept in a tree. Names are sorted."""

    stamp: Stamp
    subfolders: list[str]
    images: bytes
    sizes: array  # bytes of each name
    hashes: array
    kinds: str


class _Walker:
    def __init__(self, known: FolderTree | None):
        self.rows, self.known = _Rows(), _Known(known) if known is not None else None
        self.settled, self.special, self.forbidden = 0, list[str](), list[str]()
        self.devices = _devices_without_times()

    def walk(self, root: str) -> None:
        visited: set[str] = set()  # links are followed, and a loop of links is walked once
        folders = [("", os.path.realpath(root))]  # to be walked: the path below the root, and the path without links
        while folders:
            folder, real = folders.pop()
            if real in visited:
                continue
            visited.add(real)
            path = os.path.join(root, folder) if folder else root
            try:
                content, links = self._content(path, folder)
            except PermissionError:
                self.forbidden.append(path)
                continue
            self.rows.add(folder, content)
            folders += [
                (
                    os.path.join(folder, name),
                    os.path.realpath(os.path.join(path, name)) if name in links else os.path.join(real, name),
                )
                for name in reversed(content.subfolders)
            ]

    def _content(self, path: str, folder: str) -> tuple[_Content, set[str]]:
        """What a folder holds, and the names in it of links to folders."""
        now, status = time.time_ns(), os.stat(path)
        stamp = status.st_mtime_ns, status.st_ctime_ns, _signed(status.st_ino)
        tells = max(stamp[:2]) < now - SETTLED_NS and status.st_dev not in self.devices
        if tells and self.known is not None and (content := self.known.content(folder, stamp)) is not None:
            if not os.access(path, os.R_OK):
                raise PermissionError
            return content, set()
        names, others, kinds = _scan(path)
        subfolders: list[str] = []
        links: set[str] = set()
        special = len(self.special)
        for entry in others:
            is_link = entry.is_symlink()
            tells = tells and not is_link
            if _is(entry, os.DirEntry.is_dir):
                subfolders.append(entry.name)
                links |= {entry.name} if is_link else set()
            elif is_image(entry.name):
                if _is(entry, os.DirEntry.is_file) or (is_link and not os.path.exists(entry.path)):
                    names.append(entry.name)
                    kinds[kind_of(entry.name)] += 1
                else:
                    self.special.append(entry.path)
            elif _is(entry, os.DirEntry.is_file):
                kinds[kind_of(entry.name)] += 1
        names.sort()
        tells = tells and len(self.special) == special
        self.settled += len(names) if tells else 0
        parts = list(map(encoded, names))
        start = zlib.crc32(encoded(os.path.join(folder, "")))
        return _Content(
            stamp if tells else UNKNOWN,
            subfolders,
            b"".join(parts),
            array("q", map(len, parts)),
            array("I", [zlib.crc32(part, start) for part in parts]),
            written(kinds),
        ), links


class _Known:
    """The folders of an earlier tree by their path."""

    def __init__(self, tree: FolderTree):
        self.tree, self.sizes_N = tree, tree.images.sizes()
        self.row_of = {tree.folders[row]: row for row in range(len(tree.folders))}

    def content(self, folder: str, stamp: Stamp) -> _Content | None:
        """What a folder holds; None where it is not known or has changed."""
        row = self.row_of.get(folder)
        if row is None or tuple(self.tree.stamp_FS[row].tolist()) != stamp:
            return None
        first, last = _range(self.tree.subfolder_end_F, row)
        start, stop = _range(self.tree.image_end_F, row)
        sizes, hashes = array("q"), array("I")
        sizes.frombytes(self.sizes_N[start:stop].tobytes())
        hashes.frombytes(self.tree.hash_N[start:stop].tobytes())
        subfolders = [self.tree.subfolders[index] for index in range(first, last)]
        images = self.tree.images.content(start, stop)
        return _Content(stamp, subfolders, images, sizes, hashes, self.tree.kinds[row])


class _Rows:
    """Folders one after the other, which become a tree."""

    def __init__(self) -> None:
        self.folders, self.subfolders, self.images = list[str](), list[str](), bytearray()
        self.kinds = list[str]()
        self.stamps, self.subfolder_ends, self.image_ends = array("q"), array("q"), array("q")
        self.sizes, self.hashes = array("q"), array("I")

    def add(self, folder: str, content: _Content) -> None:
        self.folders.append(folder)
        self.stamps.extend(content.stamp)
        self.subfolders += content.subfolders
        self.subfolder_ends.append(len(self.subfolders))
        self.images += content.images
        self.sizes += content.sizes
        self.hashes += content.hashes
        self.kinds.append(content.kinds)
        self.image_ends.append(len(self.sizes))

    def tree(self) -> FolderTree:
        return FolderTree(
            Names.of(self.folders),
            np.array(self.stamps, np.int64).reshape(-1, len(UNKNOWN)),
            Names.of(self.subfolders),
            np.array(self.subfolder_ends, np.int64),
            Names.of_bytes(self.images, self.sizes),
            np.array(self.image_ends, np.int64),
            np.array(self.hashes, np.uint32),
            Names.of(self.kinds),
        )


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _scan(path: str) -> tuple[list[str], list[os.DirEntry[str]], Counter[str]]:
    """Names of images; all that are no regular files, sorted by name; the kinds of files. Nothing that is hidden."""
    names: list[str] = []
    others: list[os.DirEntry[str]] = []
    counts: Counter[str] = Counter()
    is_known_ending: dict[str, bool] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if not entry.is_file(follow_symlinks=False):
                others.append(entry)
                continue
            ending = name[name.rfind(".") :]  # of all files, there are only a few
            counts[ending] += 1
            if ending not in is_known_ending:
                is_known_ending[ending] = is_image("name" + ending)
            if is_known_ending[ending]:
                names.append(name)
    kinds: Counter[str] = Counter()
    for ending, count in counts.items():
        kinds[kind_of(ending)] += count
    return names, sorted(others, key=lambda entry: entry.name), kinds


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether it is of that kind, links followed; False where links lead in a circle."""
    try:
        return kind(entry)
    except OSError:
        return False


def _devices_without_times() -> set[int]:
    """The devices of file systems of FUSE, but for disks. Each line is: id parent major:minor ... - type source ..."""
    devices: set[int] = set()
    with suppress(OSError, ValueError, IndexError):  # only Linux has it
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, system = line.partition(" - ")
            if system.startswith("fuse") and not system.startswith("fuseblk"):
                major, minor = fields.split()[2].split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return devices


def _signed(number: int) -> int:
    """The number in 64 bits with a sign."""
    return (number + 2**63) % 2**64 - 2**63


def _range(ends: np.ndarray, row: int) -> tuple[int, int]:
    return int(ends[row - 1]) if row else 0, int(ends[row])
