"""Which images a folder or a list file names, with their labels, in a fixed order; nothing of them is read.

A name may be any bytes but a line break in a list. What is called like an image and is none that can be opened without
harm (a pipe, a socket, a device) is left out, with a warning; a link that leads nowhere is listed, and broken.
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


def list_images(root: Path, key: str, labels: str, tell: bool = True) -> tuple[list[Entry], list[str]]:
    """Every image with its label, in a fixed order, and the sorted labels (none where images are unlabelled).

    labels: as in Folder, or `any`, which takes each label that there is; tell: whether to warn of what is odd. Raises
    ValueError where `root`, the value of `key`, does not exist, cannot be listed, or names no images.
    """
    if not root.exists():
        raise ValueError(f"{key} {printable_name(root)} does not exist")
    root = root.absolute()  # so that a list of chosen images can be read from anywhere
    try:
        entries = _from_folder(root, tell) if root.is_dir() else _from_file(root, key)
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
            f"DATA.labels folders: {printable_name(unlabelled)} has no label, neither a folder below {printable_name(root)} nor one in a "
            "list"
        )
    if tell:
        _warn_of_likes(names, key)
    return entries, names


def _from_folder(root: Path, tell: bool) -> list[Entry]:
    entries: list[Entry] = []
    odd: list[str] = []
    closed: list[str] = []
    seen: set[str] = set()  # links are followed, and a loop of links is walked once
    ahead: list[tuple[str, str | None]] = [(str(root), None)]  # folders with the label of what is below them
    while ahead:
        folder, label = ahead.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                inside = sorted(
                    (entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name
                )
        except PermissionError:
            closed.append(folder)
            continue
        below = []
        for entry in inside:
            if _holds(entry, os.DirEntry.is_dir):
                below.append((entry.path, label or entry.name))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                if _holds(entry, os.DirEntry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
                    entries.append((Path(entry.path), label))
                else:
                    odd.append(entry.path)
        ahead += reversed(below)
    if tell:
        _warn_of(odd, "are called like images and are pipes, sockets or devices: they are left out")
        _warn_of(closed, "are folders that may not be read: what is in them is left out")
    return entries


def _holds(entry: os.DirEntry[str], question: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether it is one, links followed; no where links lead in a circle."""
    try:
        return question(entry)
    except OSError:
        return False


def _from_file(file: Path, key: str) -> list[Entry]:
    """One path a line, in UTF-8 or any bytes, with a label behind a tab perhaps; lines end with LF or CRLF."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if (place := content.find(b"\0")) >= 0:
        number = content.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{key} {printable_name(file)} holds a zero byte in line {number:,}: name a folder of images, or a text file in "
            "UTF-8 with one path a line"
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


def _warn_of_likes(names: Iterable[str], key: str) -> None:
    first: dict[str, str] = {}
    for name in names:
        like = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if like != name:
            LOG.warning(
                "%s: the labels %r and %r look alike and are two classes",
                key,
                printable_name(like),
                printable_name(name),
            )
