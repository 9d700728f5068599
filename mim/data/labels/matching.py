"""Matching: which row of a table belongs to which image, by the paths of both.

Shapes: N images.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mim.data.decoding.images import EXTENSIONS
from mim.data.labels.table import Table
from mim.data.sources.base import Source
from mim.data.sources.classes import composed
from mim.io.formatting import printable

LOG = logging.getLogger("mim")

OTHER_ENDINGS = (".dcm", ".nii", ".jp2")  # that a table may name where the images are pictures made of those
Key = Callable[[str], str]


class Rule(NamedTuple):
    """One way to compare paths: both become keys, and equal keys match."""

    words: str  # how a message says it
    of_row: Key
    of_image: Key
    is_path: bool = False  # whether equal keys are the same file


class Match(NamedTuple):
    """Which row each image has."""

    row_N: np.ndarray  # -1 where it has none
    rows_without: list[int]  # rows that name no image
    words: str  # how paths were compared


def match_rows(
    table: Table, path_column: str, compared: Sequence[str], images: Source, folder: Path, root: Path
) -> Match:
    """The row of each image, by the first rule that finds an image for every row, or for most of them.

    Args:
        table: its rows.
        path_column: the column that names the image.
        compared: the columns in which two rows of an image may not differ.
        images: their names are paths.
        folder: of the table.
        root: of DATA.path.

    Raises ValueError where no row names an image, one names several, or an image has two rows.
    """
    names = [composed(images.describe(index)) for index in range(len(images))]
    paths = [_slashes(composed(path)) for path in table.column("LABELS.path_column", path_column)]
    best_count, best_rule, best_indices = 0, None, dict[str, list[int]]()
    for rule in rules(folder, root):
        indices_of = defaultdict[str, list[int]](list)
        for index, name in enumerate(names):
            indices_of[rule.of_image(name)].append(index)
        count = sum(rule.of_row(path) in indices_of for path in paths)
        if count > best_count:
            best_count, best_rule, best_indices = count, rule, indices_of
        if count == len(paths):
            break
    if best_rule is None:
        raise ValueError(
            f"no row of {table.name} names an image: {table.where(0)} has {printable(paths[0])!r}, and the first image "
            f"is {images.describe(0)}. A path is relative to the folder of the table or to DATA.path, absolute, or the "
            "name of a file; LABELS.path_column names its column"
        )
    return _matched(table, paths, compared, images, best_rule, best_indices)


def rules(folder: Path, root: Path) -> list[Rule]:
    """The rules in their order. folder: of the table."""
    return [
        Rule("relative to the folder of the table, or absolute", lambda path: _within(folder, path), _normal, True),
        Rule("relative to DATA.path", lambda path: _within(root, path), _normal, True),
        Rule("by folder and file name", lambda path: _end(path, 2), lambda name: _end(name, 2)),
        Rule("by file name", lambda path: _end(path, 1), lambda name: _end(name, 1)),
        Rule("by file name without its ending", lambda path: stem(_end(path, 1)), lambda name: stem(_end(name, 1))),
    ]


def stem(name: str) -> str:
    """A file name without the ending of an image; what else follows a point stays."""
    base, ending = os.path.splitext(name)
    return base if ending.lower() in EXTENSIONS or ending.lower() in OTHER_ENDINGS else name


def _matched(
    table: Table,
    paths: Sequence[str],
    compared: Sequence[str],
    images: Source,
    rule: Rule,
    indices_of: dict[str, list[int]],
) -> Match:
    row_N = np.full(len(images), -1, np.int64)
    without: list[int] = []
    repeated: list[int] = []
    for row, path in enumerate(paths):
        indices = indices_of.get(rule.of_row(path), [])
        if not indices:
            without.append(row)
            continue
        others = {images.describe(index) for index in indices} if len(indices) > 1 and not rule.is_path else set()
        if len(others) > 1:
            one, other, *_ = sorted(others)
            raise ValueError(
                f"{table.where(row)}: {printable(path)!r} is the name of several images, such as {one} and {other}: "
                "write paths that are relative to the folder of the table or to DATA.path"
            )
        if row_N[indices[0]] >= 0:
            _check_equal(table, compared, int(row_N[indices[0]]), row, images.describe(indices[0]))
            repeated.append(row)
        else:
            row_N[indices] = row
    if repeated:
        message = "%s: %d rows repeat another one, such as %s %d: they count once"
        LOG.warning(message, table.name, len(repeated), table.unit, table.lines[repeated[0]])
    return Match(row_N, without, rule.words)


def _check_equal(table: Table, compared: Sequence[str], first: int, second: int, image: str) -> None:
    """Raises ValueError where two rows of an image differ in a column."""
    for name in compared:
        column = table.columns[name]
        if column[first] != column[second]:
            raise ValueError(
                f"{table.where(first)} and {table.unit} {table.lines[second]:,} both name {image}, and column "
                f"{printable(name)} has {printable(column[first])!r} and {printable(column[second])!r}: leave one row. "
                "Several classes of an image stand in one row: in columns of 0 and 1, or with LABELS.separator"
            )


def _within(folder: Path, path: str) -> str:
    return composed(os.path.normpath(os.path.join(folder, path)))


def _normal(name: str) -> str:
    return os.path.normpath(name)


def _end(path: str, parts: int) -> str:
    return "/".join(path.rsplit("/", parts)[-parts:])


def _slashes(path: str) -> str:
    """A path that Windows wrote, as other systems write it."""
    return path.replace("\\", "/") if os.sep == "/" and "\\" in path and "/" not in path else path
