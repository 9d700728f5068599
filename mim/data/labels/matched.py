"""Matched labels: those of a data set under the names that a readout answers, for every kind of labels.

Shapes: N images, K classes or columns, H W pixels.
"""

import numpy as np

from mim.data.sources.base import Source
from mim.data.sources.classes import composed, match_classes
from mim.data.sources.view import View
from mim.io.formatting import list_names
from mim.structures import LabelSpec

WORDS = {"class": "class", "classes": "class", "number": "column", "mask": "class"}


class MatchedColumns(View):
    """The images of a source with the columns of other labels; NaN in those that it does not have."""

    def __init__(self, source: Source, spec: LabelSpec, column_K: np.ndarray):
        super().__init__(source)
        assert source.labels is not None
        self.labels = np.where(column_K < 0, np.nan, source.labels[:, column_K]).astype(np.float32)
        self._spec = spec

    @property
    def label_spec(self) -> LabelSpec:
        return self._spec


class MatchedMasks(View):
    """The images of a source with masks that number other classes."""

    def __init__(self, source: Source, spec: LabelSpec, number_of_class: np.ndarray):
        super().__init__(source)
        self._spec, self._numbers = spec, np.append(number_of_class, -1)  # -1 stays -1, the last

    @property
    def label_spec(self) -> LabelSpec:
        return self._spec

    def mask(self, index: int) -> np.ndarray:
        return self._numbers[super().mask(index)]


def match_labels(source: Source, spec: LabelSpec, whose: str) -> tuple[Source, str]:
    """A labelled source with the names and the order of `spec`, and what a user should know of the comparison.

    Names are compared, whatever their order. A class or column that the source does not have is unknown in all of its
    images; numbers of other columns are left out.

    Args:
        source: its labels.
        spec: what a readout answers.
        whose: what these are the names of, for messages.

    Raises ValueError where the labels are of another kind; where an image has a class that is not in `spec`, or masks
    name one; and where no column of numbers is in `spec`.
    """
    own = source.label_spec
    assert own is not None
    if own.kind != spec.kind:
        raise ValueError(
            f"{source.label_origin()} are of kind {own.kind}, and those of {whose} of kind {spec.kind}: name labels of "
            "that kind with LABELS.file or LABELS.masks"
        )
    if own.names == spec.names and spec.kind != "class":
        return source, ""
    if spec.kind == "class":
        return match_classes(source, spec.names, whose)
    key = composed if len(set(map(composed, spec.names))) == len(spec.names) else str
    position = {key(name): number for number, name in enumerate(own.names)}
    known = set(map(key, spec.names))
    others = [name for name in own.names if key(name) not in known and _is_used(source, position[key(name)])]
    shared = [name for name in spec.names if key(name) in position]
    word = WORDS[spec.kind]
    if (others and spec.kind != "number") or not shared:
        raise ValueError(
            f"{source.label_origin()} name others than {whose}: {list_names(others or own.names)}, and it knows "
            f"{list_names(spec.names)}. Name data with these, or rename those that differ"
        )
    notes = []
    if len(shared) < len(spec.names):
        absent = [name for name in spec.names if key(name) not in position]
        notes.append(f"without {word} {list_names(absent)}, which {source.label_origin()} do not have")
    if others:
        notes.append(f"{word} {list_names(others)} is left out")
    column_K = np.array([position.get(key(name), -1) for name in spec.names])
    if spec.kind != "mask":
        return MatchedColumns(source, spec, column_K), "; ".join(notes)
    number_of = {key(name): number for number, name in enumerate(spec.names)}
    return MatchedMasks(source, spec, np.array([number_of[key(name)] for name in own.names])), "; ".join(notes)


def _is_used(source: Source, column: int) -> bool:
    """Whether an image has this class, as far as that is known without reading masks."""
    if source.label_kind != "classes":
        return True
    assert source.labels is not None
    return bool((source.labels[:, column] == 1).any())
