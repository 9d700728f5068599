"""Classes: the names of a source's labels, and labels that number the classes of another list of names."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from mim.data.sources.base import Source
from mim.data.sources.view import View
from mim.io.formatting import list_names


class Relabelled(View):
    """The images of a source with other labels."""

    def __init__(self, source: Source, labels: np.ndarray, classes: tuple[str, ...]):
        super().__init__(source)
        self.labels, self.classes = labels, classes


def class_names(source: Source) -> tuple[str, ...]:
    """The names of the classes, or columns of numbers, of a labelled source; numbers where classes have no names."""
    spec = source.label_spec
    return () if spec is None else spec.names


def class_labels(source: Source) -> np.ndarray | None:
    """The class of each image, (samples,) int64; None where there are no labels, or labels of another kind."""
    return source.labels if source.label_kind == "class" else None


def composed(name: str) -> str:
    """A name in the form in which accents are one character with their letter: file systems write both forms."""
    return unicodedata.normalize("NFC", name)


def numbers(count: int) -> tuple[str, ...]:
    """The names of classes without names: 0, 1, ..."""
    return tuple(map(str, range(count)))


def match_classes(source: Source, classes: Sequence[str], whose: str) -> tuple[Source, str]:
    """A labelled source, its labels numbered as in `classes`, and what a user should know of the comparison.

    Names are compared, whatever their order. A source without names is compared by number.

    Args:
        source: its labels.
        classes: the names that the labels shall number.
        whose: what these are the classes of, for messages.

    Raises ValueError, with both lists, where an image has a class that is not in `classes`.
    """
    assert source.labels is not None
    classes = tuple(classes)
    present, position = np.unique(source.labels, return_inverse=True)
    note = "" if len(present) == len(classes) else f"{len(present):,} of {len(classes):,} classes have images here"
    if source.classes == classes:
        return source, note
    names = [source.classes[label] if source.classes else str(label) for label in present.tolist()]
    if not source.classes and classes != numbers(len(classes)):
        names = [classes[label] if label < len(classes) else str(label) for label in present.tolist()]
        unnamed = f"{source.label_origin()} have no names: number 0 is taken for {classes[0]}, and so on"
        note = f"{unnamed}; {note}" if note else unnamed
    key = composed if len(set(map(composed, classes))) == len(classes) else str
    number_of = {key(name): number for number, name in enumerate(classes)}
    unknown = [name for name in names if key(name) not in number_of]
    if unknown:
        raise ValueError(
            f"{source.label_origin()} name other classes than {whose}: {list_names(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among its {len(classes):,} classes, {list_names(classes)}. "
            "Name data with these classes, or rename those that differ"
        )
    labels = np.array([number_of[key(name)] for name in names], dtype=np.int64)[position]
    return Relabelled(source, labels, classes), note
