"""Mask names: which mask belongs to which image."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mim.data.decoding.names import printable_name
from mim.data.labels.layouts import SUFFIXES
from mim.data.labels.mask_files import MaskFiles
from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import Source
from mim.data.sources.classes import composed
from mim.io.formatting import printable

ENDINGS = frozenset([".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".npy"])
PARTS = (3, 2, 1)  # of a path, by which it is compared


def find_masks(images: Source, settings: LabelSettings, root: Path) -> MaskFiles:
    """The mask of each image, by their names. root: of DATA.path.

    Names are compared by their paths below DATA.path and LABELS.masks, or by the last three, two or one parts of paths:
    the first of these ways by which every image finds a mask, or else most of them.

    Raises ValueError where there are no masks, or an image has several.
    """
    folder = Path(os.path.abspath(settings.masks))
    image_suffix, mask_suffix = SUFFIXES.get(settings.layout, ("", ""))
    image_suffix, mask_suffix = settings.image_suffix or image_suffix, settings.mask_suffix or mask_suffix
    masks = _masks_in(folder, mask_suffix)
    names = [composed(images.describe(index)) for index in range(len(images))]
    own = {composed(path) for path in masks}
    is_mask_N = np.array([name in own for name in names], bool)
    if is_mask_N.all():
        raise ValueError(
            f"all images of DATA.path {images.settings.path} are masks of LABELS.masks {settings.masks}: name two "
            "folders, or set LABELS.mask_suffix"
        )
    image_keys = [_key(name, image_suffix) for name in names]
    mask_keys = [_key(composed(path), mask_suffix) for path in masks]
    ways = [
        ("by path", _below(image_keys, root), _below(mask_keys, folder)),
        *((_words(parts), _ends(image_keys, parts), _ends(mask_keys, parts)) for parts in PARTS),
    ]
    matches = [(_match(ours, theirs, is_mask_N), words) for words, ours, theirs in ways]
    best, words = max(matches, key=lambda match: sum(map(bool, match[0])))  # the first of equal ones
    paths = []
    for name, own_masks in zip(names, best, strict=True):
        if len(own_masks) > 1:
            raise ValueError(
                f"{name} has several masks, such as {printable_name(masks[own_masks[0]])} and "
                f"{printable_name(masks[own_masks[1]])}: leave one, or set LABELS.mask_suffix"
            )
        paths.append(masks[own_masks[0]] if own_masks else "")
    return MaskFiles(paths, is_mask_N, folder, settings, words)


def _masks_in(folder: Path, suffix: str) -> list[str]:
    """The masks of LABELS.masks, in order. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"LABELS.masks {printable_name(folder)} is no folder: name the folder of the masks")
    masks = [path for path in sorted(_pictures(folder)) if os.path.splitext(path)[0].endswith(suffix)]
    if not masks:
        kinds = f"with names that end with {printable(suffix)}" if suffix else f"({' '.join(sorted(ENDINGS))})"
        raise ValueError(f"LABELS.masks {printable_name(folder)} has no pictures {kinds}")
    return masks


def _match(ours: Sequence[str], theirs: Sequence[str], is_mask_N: np.ndarray) -> list[list[int]]:
    """The masks with the key of each image; none for images that are masks themselves."""
    masks_of = defaultdict(list)
    for mask, key in enumerate(theirs):
        masks_of[key].append(mask)
    return [[] if is_mask else masks_of.get(key, []) for key, is_mask in zip(ours, is_mask_N.tolist(), strict=True)]


def _pictures(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith("."):
                yield os.path.join(path, name)


def _key(path: str, suffix: str) -> str:
    """A path without its ending and the suffix."""
    return os.path.splitext(path)[0].removesuffix(suffix)


def _below(keys: Sequence[str], root: Path) -> list[str]:
    """The part of each path below a folder; the whole path elsewhere."""
    start = composed(os.path.join(root, ""))
    return [key.removeprefix(start) for key in keys]


def _ends(keys: Sequence[str], parts: int) -> list[str]:
    return ["/".join(key.replace(os.sep, "/").rsplit("/", parts)[-parts:]) for key in keys]


def _words(parts: int) -> str:
    return f"by the last {parts} parts of paths" if parts > 1 else "by file name"
