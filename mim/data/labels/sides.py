"""Sides: which images of a data set train and which are held out: as it says itself, or as LABELS says.

Shapes: N images of both splits, the training images first.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mim.data.labels.columns import Labels
from mim.data.labels.labelled import Both
from mim.data.labels.settings import LabelSettings
from mim.data.labels.splits import fold_of, held_out_groups
from mim.data.labels.table import Table
from mim.io.formatting import printable

TRAIN, HELD_OUT, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The positions of the training and of the held-out images, the group of each image, and the split in words."""

    rows: tuple[np.ndarray, np.ndarray]
    group_N: np.ndarray | None
    note: str


def sides_of(
    both: Both, table: Table | None, row_N: np.ndarray, is_used_N: np.ndarray, labels: Labels, settings: LabelSettings
) -> Sides:
    """The split of the images that have labels.

    Raises ValueError where a split or group is missing or unknown, a group is on both sides, or a side has no image.
    """
    group_names, group_N = _groups(both, table, row_N, is_used_N, settings)
    used = np.flatnonzero(is_used_N)
    is_held_out_N = np.arange(len(both)) >= both.start
    share, how = both.parts[0].held_out_share, "as the data set is split"
    if settings.split_column:
        assert table is not None
        is_held_out_N, is_left_out_N = _by_column(table, row_N, used, settings.split_column)
        how = f"by column {printable(settings.split_column)}"
        if is_left_out_N.any():
            how += f", {int(is_left_out_N.sum()):,} test images left out"
        used = used[~is_left_out_N[used]]
    elif settings.folds:
        names = [both.describe(index) for index in used.tolist()]
        class_N = labels.values[used] if labels.spec.kind == "class" else None
        groups = None if group_N is None else group_N[used]
        is_held_out_N[used] = fold_of(names, class_N, groups, settings.folds, settings.seed) == settings.fold
        how = f"fold {settings.fold} of {settings.folds}"
    elif group_N is not None and share is not None:
        is_held_out_N[used] = held_out_groups([group_names[index] for index in used.tolist()], share)
        how = f"a share of {share:g} of the groups is held out"
    rows = used[~is_held_out_N[used]], used[is_held_out_N[used]]
    if group_N is not None:
        _check_groups(both, group_names, group_N, rows, settings.group)
        how += f", {len(np.unique(group_N[rows[0]])):,} and {len(np.unique(group_N[rows[1]])):,} groups"
    if not len(rows[0]):
        raise ValueError(f"LABELS leaves no training image ({len(rows[1]):,} are held out, {how})")
    return Sides(rows, group_N, f"{len(rows[0]):,} training and {len(rows[1]):,} held-out images ({how})")


def _groups(
    both: Both, table: Table | None, row_N: np.ndarray, is_used_N: np.ndarray, settings: LabelSettings
) -> tuple[list[str], np.ndarray | None]:
    """The name and the number of the group of each image; -1 where it is not used."""
    if table is None or not settings.group:
        return [], None
    column = table.columns[settings.group]
    names = [column[row] if is_used else "" for row, is_used in zip(row_N.tolist(), is_used_N.tolist(), strict=True)]
    for index in np.flatnonzero(is_used_N).tolist():
        if not names[index]:
            raise ValueError(
                f"{table.where(int(row_N[index]))} has no group in column {printable(settings.group)}: each image "
                "needs one, such as its own name where it belongs to no other"
            )
    _, group_N = np.unique(np.array(names), return_inverse=True)
    return names, np.where(is_used_N, group_N, -1)


def _by_column(table: Table, row_N: np.ndarray, used: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which images are held out, and which are in the test split."""
    is_held_out_N, is_left_out_N = np.zeros(len(row_N), bool), np.zeros(len(row_N), bool)
    column = table.columns[name]
    for index in used.tolist():
        row = int(row_N[index])
        text = column[row].lower()
        if text not in (*TRAIN, *HELD_OUT, *TEST):
            raise ValueError(
                f"{table.where(row)}, column {printable(name)}: {printable(column[row])!r} is no split: it must be "
                "train, val or test"
            )
        is_held_out_N[index], is_left_out_N[index] = text in HELD_OUT, text in TEST
    return is_held_out_N, is_left_out_N


def _check_groups(
    both: Both, names: list[str], group_N: np.ndarray, rows: tuple[np.ndarray, np.ndarray], column: str
) -> None:
    """Raises ValueError where a group has training and held-out images."""
    shared = np.intersect1d(group_N[rows[0]], group_N[rows[1]])
    if len(shared):
        one, other = (next(index for index in side.tolist() if group_N[index] == shared[0]) for side in rows)
        counts = Counter(names[index] for side in rows for index in side.tolist())
        raise ValueError(
            f"LABELS.group {printable(column)}: {len(shared):,} groups have training and held-out images, such as "
            f"{printable(names[one])!r} ({counts[names[one]]:,} images): {both.describe(one)} trains and "
            f"{both.describe(other)} is held out. LABELS.folds makes a split by groups; or mend the split"
        )
