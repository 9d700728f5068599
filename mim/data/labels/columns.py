"""Columns: texts become labels of one of three kinds: one class, several classes, or numbers.

Shapes: N labelled images, K classes or columns of numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mim.data.labels.settings import LabelSettings
from mim.io.formatting import list_names, printable
from mim.structures import LabelSpec

ZERO_ONE = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
MOST_CODES = 1000  # whole numbers that are taken for classes where a config does not say
FEW = 10  # different numbers, of which a line says that they may be classes
LARGEST = float(np.finfo(np.float32).max)
Texts = Mapping[str, Sequence[str]]  # the cells of each column, none of them empty
Where = Callable[[int], str]  # the file and line of a cell, or the image, for messages


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What the labels are, the label of each image as Source.labels has it, and what a user should know of both."""

    spec: LabelSpec
    values: np.ndarray
    note: str


def read_labels(columns: Texts, settings: LabelSettings, where: Where, origin: str) -> Labels:
    """The labels that columns of texts hold. origin: the name of the table, for messages.

    Raises ValueError where the values do not fit LABELS.kind, or `auto` cannot tell classes from numbers.
    """
    kind, reason = (settings.kind, "") if settings.kind != "auto" else _kind_of(columns, settings, where, origin)
    if settings.bins:
        labels = _binned(*_only(columns, "LABELS.bins"), settings.bins, where)
    elif kind == "class":
        labels = _classes(_only(columns, "LABELS.kind class")[1])
    elif kind == "classes":
        labels = _several(columns, settings.separator, where)
    else:
        labels = _numbers(columns, where)
    names = list_names(labels.spec.names)
    what = {"class": f"{len(labels.spec.names):,} classes, {names}", "number": f"numbers, {names}"}
    several = f"several of {len(labels.spec.names):,} classes for each image, {names}"
    return Labels(labels.spec, labels.values, what.get(labels.spec.kind, several) + (f" ({reason})" if reason else ""))


def _kind_of(columns: Texts, settings: LabelSettings, where: Where, origin: str) -> tuple[str, str]:
    """The kind of labels that their values suggest, and why."""
    name, texts = next(iter(columns.items()))
    if settings.bins:
        return "class", ""
    if all(text.lower() in ZERO_ONE for column in columns.values() for text in column) and len(columns) > 1:
        return "classes", "all columns hold 0 and 1"
    unlike = next(
        ((key, row) for key, column in columns.items() for row, t in enumerate(column) if not _is_number(t)), None
    )
    if unlike is None and len(columns) > 1:
        return "number", "all columns hold numbers"
    if unlike is not None and len(columns) > 1:
        key, row = unlike
        raise ValueError(
            f"{where(row)}, column {printable(key)}: {printable(columns[key][row])!r} is no number, and several "
            "columns of labels hold numbers, or 0 and 1: name one column with LABELS.columns"
        )
    if unlike is not None:
        separator = settings.separator
        example = next((text for text in texts if separator and separator in text), "")
        if example:
            return (
                "classes",
                f"{printable(example)!r} has the separator {separator!r}; LABELS.kind class keeps it whole",
            )
        return "class", ""
    return _kind_of_numbers(name, texts, origin)


def _kind_of_numbers(name: str, texts: Sequence[str], origin: str) -> tuple[str, str]:
    values = sorted({float(text) for text in texts if math.isfinite(float(text))})
    whole = all(value.is_integer() for value in values)
    span = f"{values[0]:g} to {values[-1]:g}" if values else "none"
    if not whole or not values:
        few = f"{len(values)} different ones, {span}: LABELS.kind class makes each a class, and LABELS.bins ranges"
        return "number", few if len(values) <= FEW else f"from {span}"
    if values[0] in (0, 1) and values[-1] - values[0] == len(values) - 1 < min(MOST_CODES, len(texts) / 2):
        return "class", f"the whole numbers {span} are taken for classes; LABELS.kind number takes them for numbers"
    raise ValueError(
        f"column {printable(name)} of {origin} holds {len(values):,} different whole numbers, {span}, which may be "
        "classes or measurements: set LABELS.kind class or number"
    )


def _only(columns: Texts, key: str) -> tuple[str, Sequence[str]]:
    if len(columns) > 1:
        raise ValueError(
            f"{key} is for one column of labels, and there are {len(columns)}, {list_names(tuple(columns))}: name one "
            "with LABELS.columns; columns of 0 and 1 are of LABELS.kind classes"
        )
    return next(iter(columns.items()))


def _classes(texts: Sequence[str]) -> Labels:
    names = in_order(set(texts))
    number_of = {name: number for number, name in enumerate(names)}
    return Labels(LabelSpec("class", names), np.array([number_of[text] for text in texts], np.int64), "")


def in_order(names: set[str]) -> tuple[str, ...]:
    """Names of classes: numbers by their value, others as texts."""
    if all(map(_is_number, names)):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _binned(name: str, texts: Sequence[str], edges: Sequence[float], where: Where) -> Labels:
    numbers_N = np.array([_number(text, row, name, where) for row, text in enumerate(texts)])
    inner = [f"{low:g} to <{high:g}" for low, high in pairwise(edges)]
    names = (f"<{edges[0]:g}", *inner, f">={edges[-1]:g}")
    return Labels(LabelSpec("class", names), np.digitize(numbers_N, edges).astype(np.int64), "")


def _several(columns: Texts, separator: str, where: Where) -> Labels:
    """Columns of 0 and 1, or one column with the names of an image's classes."""
    names = tuple(columns)
    if len(columns) > 1 or all(text.lower() in ZERO_ONE for text in columns[names[0]]):
        for name, texts in columns.items():
            for row, text in enumerate(texts):
                if text.lower() not in ZERO_ONE:
                    raise ValueError(
                        f"{where(row)}, column {printable(name)}: {printable(text)!r} is not 0 or 1, as several "
                        "columns of LABELS.kind classes hold; one column may hold the names of an image's classes"
                    )
        values_KN = [[ZERO_ONE[text.lower()] for text in texts] for texts in columns.values()]
        return Labels(LabelSpec("classes", names), np.array(values_KN, np.float32).T.copy(), "")
    if not separator:
        raise ValueError("LABELS.separator is empty: LABELS.kind classes needs what stands between names in a column")
    parts = [{part.strip() for part in text.split(separator)} - {""} for text in columns[names[0]]]
    names = in_order(set().union(*parts))
    values_NK = np.array([[name in own for name in names] for own in parts], np.float32)
    return Labels(LabelSpec("classes", names), values_NK, "")


def _numbers(columns: Texts, where: Where) -> Labels:
    values_KN = [[_number(text, row, name, where) for row, text in enumerate(c)] for name, c in columns.items()]
    return Labels(LabelSpec("number", tuple(columns)), np.array(values_KN, np.float32).T.copy(), "")


def _number(text: str, row: int, name: str, where: Where) -> float:
    if not _is_number(text):
        point = ", so write a point in place of the comma" if _is_number(text.replace(",", ".")) else ""
        raise ValueError(f"{where(row)}, column {printable(name)}: {printable(text)!r} is no number{point}")
    value = float(text)
    if not abs(value) <= LARGEST:
        raise ValueError(
            f"{where(row)}, column {printable(name)}: {printable(text)} is not finite in float32: correct it, or leave "
            "the cell empty and set LABELS.unlabelled skip"
        )
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text
