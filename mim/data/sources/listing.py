"""The images of a folder or a list file, with their labels, in a fixed order. No image is opened.

A name may hold any bytes; in a list, any but a line break. A pipe, a socket or a device with the name of an image is
left out, with a warning. A link that leads nowhere is listed, and is broken when it is read.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from mim.data.decoding.images import EXTENSIONS
from mim.data.decoding.names import printable_name

LOG = logging.getLogger("mim")

Entry = tuple[Path, str | None]


def list_images(root: Path, key: str, labels: str, warn: bool = True) -> tuple[list[Entry], list[str]]:
    """Every image with its label, in a fixed order, and the sorted labels (none where images have no labels).

    Args:
        root: a folder or a list file.
        key: the config key that names it, for errors.
        labels: as in Folder; `any` takes every label that there is.
        warn: log what is unusual.

    Raises ValueError where `root` does not exist, cannot be listed, or names no images.
    """
    if not root.exists():
        raise ValueError(f"{key} {printable_name(root)} does not exist")
    root = root.absolute()  # so that a list of chosen images can be read from anywhere
    try:
        entries = _from_folder(root, warn) if root.is_dir() else _from_file(root, key)
    except OSError as error:
        raise ValueError(f"{key} {printable_name(root)} cannot be listed: {printable_name(str(error))}") from error
    if not entries:
        endings = " ".join(sorted(EXTENSIONS))
        raise ValueError(f"{key} {printable_name(root)} holds no images: looked in it and below for {endings}")
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
            f"DATA.labels folders: {printable_name(unlabelled)} has no label: it needs a folder below "
            f"{printable_name(root)}, or a label in the list"
        )
    if warn:
        _warn_of_similar(names, key)
    return entries, names


def _from_folder(root: Path, warn: bool) -> list[Entry]:
    entries: list[Entry] = []
    special: list[str] = []
    forbidden: list[str] = []
    visited: set[str] = set()  # links are followed, and a loop of links is walked once
    folders: list[tuple[str, str | None]] = [(str(root), None)]  # to be walked, with the label of their images
    while folders:
        folder, label = folders.pop()
        if (real := os.path.realpath(folder)) in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as scan:
                content = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name)
        except PermissionError:
            forbidden.append(folder)
            continue
        below = []
        for entry in content:
            if _is(entry, os.DirEntry.is_dir):
                below.append((entry.path, label or entry.name))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                if _is(entry, os.DirEntry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
                    entries.append((Path(entry.path), label))
                else:
                    special.append(entry.path)
        folders += reversed(below)
    if warn:
        _warn_of(special, "have the names of images and are pipes, sockets or devices: they are left out")
        _warn_of(forbidden, "are folders that may not be read: their images are left out")
    return entries


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether it is of that kind, links followed; False where links lead in a circle."""
    try:
        return kind(entry)
    except OSError:
        return False


def _from_file(file: Path, key: str) -> list[Entry]:
    """One path a line, in UTF-8 or any bytes, and a label after a tab where there is one. Lines end with LF or CRLF."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if (position := content.find(b"\0")) >= 0:
        line_number = content.count(b"\n", 0, position) + 1
        raise ValueError(
            f"{key} {printable_name(file)} holds a zero byte in line {line_number:,}: name a folder of images, or a "
            "text file in UTF-8 with one path a line"
        )
    entries: list[Entry] = []
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        if line.strip():
            path, _, label = line.removesuffix("\r").partition("\t")
            entries.append((file.parent / path, label or None))
    return entries


def _warn_of(paths: list[str], what: str) -> None:
    if paths:
        LOG.warning("%s %s, such as %s", f"{len(paths):,}", what, printable_name(paths[0]))


def _warn_of_similar(names: Iterable[str], key: str) -> None:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            pair = printable_name(other), printable_name(name)
            LOG.warning("%s: the labels %r and %r look alike and are two classes", key, *pair)
