"""Labelled: images of a source with labels of any kind from elsewhere; and Both, the two splits as one source."""

from collections.abc import Sequence

import numpy as np

from mim.data.labels.mask_files import MaskFiles
from mim.data.sources.base import NeedOf, Source, Split, Stored
from mim.data.sources.classes import class_labels
from mim.data.sources.view import View
from mim.structures import LabelSpec


class Both(Source):
    """The training images of a data set, and behind them the held-out ones. Their own labels stay apart."""

    def __init__(self, train: Source, held_out: Source):
        super().__init__("train", train.settings)
        self.parts, self.start, self.say = (train, held_out), len(train), train.say
        self.contents = train.contents

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, index: int) -> Stored:
        source, row = self._of(index)
        return source.read(row)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        source, row = self._of(index)
        return source.read_reduced(row, need_of)

    def describe(self, index: int) -> str:
        source, row = self._of(index)
        return source.describe(row)

    def label_origin(self) -> str:
        return self.parts[0].label_origin()

    def missing(self) -> str:
        return self.parts[0].missing() or (self.parts[1].missing() if len(self.parts[1]) else "")

    def own_classes(self) -> list[str] | None:
        """The name of the class that the data set gives each image; None where it gives some no class."""
        names: list[str] = []
        for part in self.parts:
            labels, spec = class_labels(part), part.label_spec
            if len(part) and (labels is None or spec is None):
                return None
            names += [] if labels is None or spec is None else [spec.names[label] for label in labels]
        return names

    def _of(self, index: int) -> tuple[Source, int]:
        return (self.parts[0], index) if index < self.start else (self.parts[1], index - self.start)


class Labelled(View):
    """Some images of a source, with labels from elsewhere.

    Args:
        source: the images.
        rows: the positions of the images in it.
        split: which of the splits they are.
        spec: what the labels are.
        labels: of these rows, see Source; None for masks.
        masks: of all images of the source, where the labels are masks.
        groups: of these rows, where there are any.
        origin: where the labels come from, see Source.label_origin.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int] | np.ndarray,
        split: Split,
        spec: LabelSpec,
        *,
        labels: np.ndarray | None,
        masks: MaskFiles | None,
        groups: np.ndarray | None,
        origin: str,
    ):
        super().__init__(source, rows)
        self.split, self.labels, self.groups = split, labels, groups
        self.classes = spec.names if spec.kind == "class" else ()
        self._spec, self._masks, self._origin = spec, masks, origin

    @property
    def label_spec(self) -> LabelSpec:
        return self._spec

    def mask(self, index: int) -> np.ndarray:
        assert self._masks is not None
        return self._masks.read(int(self._rows[index]))

    def label_origin(self) -> str:
        return self._origin

    def missing(self) -> str:
        return super().missing() or (self._masks.missing() if self._masks is not None else "")
