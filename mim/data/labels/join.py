"""Join: the images of a data set with the labels, groups and split that LABELS asks for.

Shapes: N images of both splits, the training images first.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim.data.decoding.names import printable_name
from mim.data.labels.columns import Labels, read_labels
from mim.data.labels.labelled import Both, Labelled
from mim.data.labels.mask_files import MaskFiles
from mim.data.labels.mask_names import find_masks
from mim.data.labels.matching import match_rows
from mim.data.labels.settings import LabelSettings
from mim.data.labels.sides import sides_of
from mim.data.labels.table import Table, read_table
from mim.data.sources.base import Source, Split
from mim.data.sources.classes import class_names
from mim.io.formatting import list_names, printable
from mim.structures import LabelSpec

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True, eq=False)
class _AllLabels:
    """The labels of all images, and which images have one."""

    labels: Labels
    is_labelled_N: np.ndarray
    masks: MaskFiles | None
    origin: str


def join_labels(train: Source, held_out: Source, settings: LabelSettings) -> tuple[Source, Source]:
    """The training and the held-out images with the labels of LABELS; the same sources where LABELS asks for nothing.

    What was decided (kind of labels, how paths were compared, the split in numbers) is logged.

    Raises ValueError where a table or masks do not fit the images; the text names the file, the line and the value.
    """
    from_elsewhere = settings.file or settings.masks or settings.folds or settings.bins
    if not from_elsewhere and settings.kind in ("auto", "class"):
        return train, held_out
    both = Both(train, held_out)
    table, row_N = None, np.arange(len(both))
    if settings.file:
        table = read_table(settings)
        row_N = _rows_of_images(table, both, settings)
    every = _masks(both, settings) if settings.masks else _of_texts(both, table, row_N, settings)
    sides = sides_of(both, table, row_N, every.is_labelled_N & (row_N >= 0), every.labels, settings)
    LOG.info("labels: %s; %s", every.labels.note, sides.note)
    _warn_of_classes(every.labels, sides.rows)
    splits: tuple[Split, Split] = ("train", "val")
    train, held_out = (
        Labelled(
            *(both, rows, split, every.labels.spec),
            labels=None if every.masks is not None else every.labels.values[rows],
            masks=every.masks,
            groups=None if sides.group_N is None else sides.group_N[rows],
            origin=every.origin,
        )
        for rows, split in zip(sides.rows, splits, strict=True)
    )
    return train, held_out


def data_root(images: Source) -> Path:
    """The folder of DATA.path, to which paths of a table may be relative."""
    path = Path(os.path.abspath(images.settings.path))
    return path.parent if path.is_file() else path


def _rows_of_images(table: Table, both: Both, settings: LabelSettings) -> np.ndarray:
    """The row of each image, -1 where it has none and may be left out."""
    used = [*_columns(table, settings), settings.split_column, settings.group]
    compared = [name for name in used if name]
    for key, name in (("LABELS.split_column", settings.split_column), ("LABELS.group", settings.group)):
        if name:
            table.column(key, name)
    folder = Path(os.path.abspath(settings.file)).parent
    match = match_rows(table, settings.path_column, compared, both, folder, data_root(both))
    LOG.info("%s: %s rows name images, %s", table.name, f"{len(table) - len(match.rows_without):,}", match.words)
    if match.rows_without:
        first = match.rows_without[0]
        path = printable(table.columns[settings.path_column][first])
        text = (
            f"{len(match.rows_without):,} of {len(table):,} rows name no image of DATA.path {both.settings.path}, such "
        )
        text += f"as {table.where(first)}, {path!r}"
        if settings.absent == "error":
            raise ValueError(
                f"{text} (compared {match.words}): correct them, or leave such rows out with LABELS.absent skip"
            )
        LOG.warning("%s: they are left out", text)
    without_N = np.flatnonzero(match.row_N < 0)
    if len(without_N):
        _left_out(len(without_N), len(both), f"have no row in {table.name}", both.describe(int(without_N[0])), settings)
    return match.row_N


def _left_out(count: int, of: int, why: str, example: str, settings: LabelSettings) -> None:
    """Raises ValueError where images without labels are an error; else warns that they are left out."""
    text = f"{count:,} of {of:,} images {why}, such as {example}"
    if settings.unlabelled == "error":
        raise ValueError(f"{text}: add their labels, or leave such images out with LABELS.unlabelled skip")
    LOG.warning("%s: they are left out", text)


def _columns(table: Table, settings: LabelSettings) -> Sequence[str]:
    """The columns with labels; none where masks are the labels."""
    if settings.masks:
        return ()
    for name in settings.columns:
        table.column("LABELS.columns", name)
    if settings.columns:
        return settings.columns
    table.column("LABELS.path_column", settings.path_column)
    others = [
        name for name in table.columns if name not in (settings.path_column, settings.split_column, settings.group)
    ]
    if len(others) != 1:
        raise ValueError(
            f"{table.name} has {len(others)} columns that may be labels, {list_names(tuple(others))}: name one or "
            "several with LABELS.columns"
        )
    return others


def _of_texts(both: Both, table: Table | None, row_N: np.ndarray, settings: LabelSettings) -> _AllLabels:
    """The labels that a table, or else the data set itself, gives as texts."""
    if table is None:
        own = both.own_classes()
        if own is None:
            raise ValueError(
                f"LABELS.kind {settings.kind} and LABELS.folds need labels, and DATA.name {both.parts[0].name} gives "
                "some images none: name a table with LABELS.file, or a folder of masks with LABELS.masks"
            )
        if settings.kind in ("auto", "class") and not settings.bins:
            return _own_classes(both, own)
        columns, origin = {"label": own}, both.label_origin()
    else:
        columns = {name: table.columns[name] for name in _columns(table, settings)}
        origin = f"the labels in column {', '.join(map(printable_name, columns))} of LABELS.file {table.name}"
    is_labelled_N = row_N >= 0
    for name, texts in columns.items():
        empty_N = np.array([row >= 0 and not texts[row] for row in row_N], bool)
        if empty_N.any():
            first = int(np.flatnonzero(empty_N)[0])
            place = (
                both.describe(first)
                if table is None
                else f"{table.where(int(row_N[first]))} for {both.describe(first)}"
            )
            _left_out(int(empty_N.sum()), len(both), f"have no label in column {printable(name)}", place, settings)
        is_labelled_N &= ~empty_N
    indices = np.flatnonzero(is_labelled_N)
    if not len(indices):
        raise ValueError(f"{origin}: no image has a label")
    rows = row_N[indices]

    def where(position: int) -> str:
        return both.describe(int(indices[position])) if table is None else table.where(int(rows[position]))

    texts_of = {name: [texts[row] for row in rows] for name, texts in columns.items()}
    labels = read_labels(texts_of, settings, where, origin)
    fill = -1 if labels.spec.kind == "class" else np.nan
    values = np.full((len(both), *labels.values.shape[1:]), fill, labels.values.dtype)
    values[indices] = labels.values
    return _AllLabels(Labels(labels.spec, values, labels.note), is_labelled_N, None, origin)


def _own_classes(both: Both, own: list[str]) -> _AllLabels:
    """The classes that the data set has, in its order."""
    names = tuple(dict.fromkeys(name for part in both.parts for name in class_names(part)))
    number_of = {name: number for number, name in enumerate(names)}
    values = np.array([number_of[name] for name in own], np.int64)
    note = f"{len(names):,} classes of the data set"
    labels = Labels(LabelSpec("class", names), values, note)
    return _AllLabels(labels, np.ones(len(both), bool), None, both.label_origin())


def _masks(both: Both, settings: LabelSettings) -> _AllLabels:
    masks = find_masks(both, settings, data_root(both))
    missing_N = np.flatnonzero(~masks.is_there_N & ~masks.is_mask_N)
    if len(missing_N):
        why = f"have no mask in LABELS.masks {settings.masks}"
        _left_out(len(missing_N), len(both), why, both.describe(int(missing_N[0])), settings)
    note = f"masks of {len(masks.spec.names):,} classes, {list_names(masks.spec.names)} ({masks.words})"
    labels = Labels(masks.spec, np.empty(0), note)
    return _AllLabels(labels, masks.is_there_N & ~masks.is_mask_N, masks, f"the masks of LABELS.masks {settings.masks}")


def _warn_of_classes(labels: Labels, rows: tuple[np.ndarray, np.ndarray]) -> None:
    """Warns of classes that have one image, or none in a split."""
    if labels.spec.kind not in ("class", "classes"):
        return
    names, values = labels.spec.names, labels.values
    of_classes = values if labels.spec.kind == "classes" else None
    counts_2K = np.array(
        [
            np.bincount(values[side], minlength=len(names)) if of_classes is None else of_classes[side].sum(0)
            for side in rows
        ]
    )
    for why, is_so_K in (
        ("one image in all", counts_2K.sum(0) == 1),
        ("no training image", counts_2K[0] == 0),
        *([("no held-out image", (counts_2K[1] == 0) & (counts_2K.sum(0) > 1))] if len(rows[1]) else []),
    ):
        few = [name for name, is_so in zip(names, is_so_K, strict=True) if is_so]
        if few:
            LOG.warning("%d of %d classes have %s: %s", len(few), len(names), why, list_names(tuple(few)))
