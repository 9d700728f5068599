"""View: some images of a source, in another order or with other labels."""

from collections.abc import Sequence

import numpy as np

from mim.data.sources.base import NeedOf, Source, Stored
from mim.structures import LabelSpec


class View(Source):
    """The base of sources that read the images of another one. Its labels are those of that source.

    Args:
        source: the other source.
        rows: the positions of the images in it; None for all, in order.
    """

    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray | None = None):
        self.chooses_channels = source.chooses_channels
        super().__init__(source.split, source.settings)
        self.source, self.classes, self.say = source, source.classes, source.say
        self._rows = np.arange(len(source)) if rows is None else np.array(rows, np.int64)
        self.labels = source.labels[self._rows] if source.labels is not None else None
        self.groups = source.groups[self._rows] if source.groups is not None else None
        self.held_out_share, self.contents = source.held_out_share, source.contents

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Stored:
        return self.source.read(int(self._rows[index]))

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return self.source.read_reduced(int(self._rows[index]), need_of)

    def prefetch(self, indices: Sequence[int]) -> None:
        self.source.prefetch([int(self._rows[index]) for index in indices])

    @property
    def label_spec(self) -> LabelSpec | None:
        return super().label_spec if self.source.label_kind in ("class", None) else self.source.label_spec

    def mask(self, index: int) -> np.ndarray:
        return self.source.mask(int(self._rows[index]))

    def describe(self, index: int) -> str:
        return self.source.describe(int(self._rows[index]))

    def label_origin(self) -> str:
        return self.source.label_origin()

    def missing(self) -> str:
        return self.source.missing()
