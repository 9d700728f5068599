"""Whether labels are classes: measurements, identities and lists of several labels are not."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mim.data.sources.base import Source
from mim.data.sources.classes import class_labels
from mim.io.formatting import printable

FEW = 10  # classes that may have one image each
SPARSE = 10  # numbers up to this many times the classes may be in use
SEPARATOR, BRACKETS = re.compile(r"[,;|]"), " \t[](){}\"'"
KINDS: dict[str, str] = {
    "classes": "several classes for each image",
    "number": "numbers",
    "mask": "a class for each pixel",
}
Problem = tuple[str, str]  # why labels are no classes, and the way out


def label_problem(train: Source, held_out: Source) -> str:
    """Why the labels of a data set are no classes, with examples; empty where they are, or there are none.

    Images of both splits are counted: a class with one training image may have held-out ones.
    """
    if train.label_kind not in ("class", None):
        return f"{train.label_origin()} are {KINDS[train.label_kind]}"
    train_labels, held_out_labels = class_labels(train), class_labels(held_out)
    if train_labels is None or not len(train_labels):
        return ""
    labels = [train_labels]
    if held_out_labels is not None and held_out.classes == train.classes:
        labels.append(held_out_labels)
    present, first, counts = np.unique(np.concatenate(labels), return_index=True, return_counts=True)
    names = [train.classes[label] if train.classes else str(label) for label in present.tolist()]
    problem = _numbers(names, counts) or _several(names) or _sparse(train, present)
    if problem is None:
        return ""
    reason, way_out = problem
    in_train = [(name, row) for name, row in zip(names, first.tolist(), strict=True) if row < len(train)]
    in_train.sort(key=lambda pair: pair[0].isalnum())  # those with a point or a comma first
    examples = " and ".join(f"{printable(name)!r} of {train.describe(row)}" for name, row in in_train[:2])
    images = f"{int(counts.sum()):,} images have {len(names):,} different labels"
    return f"{train.label_origin()} are no classes: {reason} ({images}, such as {examples}). {way_out}"


def _numbers(names: Sequence[str], counts: np.ndarray) -> Problem | None:
    values = [value for name in names if (value := _number(name)) is not None]
    are_numbers = len(values) >= 0.9 * len(names)
    if are_numbers and not all(value.is_integer() for value in values):
        return (
            "they are numbers with decimals",
            "To learn the numbers, set LABELS.kind number; to learn ranges of them, LABELS.bins, as in [0.5]. Where "
            "each number is a class, set LABELS.kind class",
        )
    single = int((counts == 1).sum()) / len(names)
    if len(names) > FEW and single >= (0.5 if are_numbers else 0.9):
        return f"{single:.0%} of them have one image each", "Give the images of a class the same label"
    return None


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _several(names: Sequence[str]) -> Problem | None:
    """Several labels in one, such as `cat,dog` and `["cat", "dog"]`: their parts return in other labels.

    A name may well have a comma.
    """
    split = {name: [part.strip(BRACKETS) for part in SEPARATOR.split(name)] for name in names}
    labels_with = Counter(part for parts in split.values() for part in set(parts))
    compound = {name: parts for name, parts in split.items() if len(parts) > 1}
    returning = 0
    for name, parts in compound.items():
        is_prose = re.search(r"[,;|] ", name)  # as in `tench, Tinca tinca` and `Doe, Jane`
        returning += (all if is_prose else any)(labels_with[part] > 1 for part in parts)
    if returning * 2 <= len(compound):
        return None
    return (
        "labels have several parts (several classes of an image, or decimal commas)",
        "To learn several classes for each image, set LABELS.kind classes and LABELS.separator; where such a label is "
        "one class, write it without the comma",
    )


def _sparse(train: Source, present: np.ndarray) -> Problem | None:
    largest = int(present[-1])
    if train.classes or largest < SPARSE * max(len(present), 100):
        return None
    return f"they are numbers up to {largest:,}, and a classifier has an output for each", "Number the classes from 0"
