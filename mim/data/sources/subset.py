"""Subset: some samples of a source, such as a seeded, class-balanced choice of labelled images."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from mim.data.settings import LabelSettings
from mim.data.sources.base import NeedOf, Source, Stored
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")


class Subset(Source):
    """Some samples of a source, in the given order."""

    def __init__(self, source: Source, chosen: Sequence[int]):
        super().__init__(source.split, source.settings)
        self.source, self._rows, self.classes = source, np.array(chosen, np.int64), source.classes
        self.labels = source.labels[self._rows] if source.labels is not None else None

    @property
    def chosen(self) -> list[int]:
        """The positions of the samples in the source."""
        return self._rows.tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Stored:
        return self.source.read(int(self._rows[index]))

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return self.source.read_reduced(int(self._rows[index]), need_of)

    def describe(self, index: int) -> str:
        return self.source.describe(int(self._rows[index]))

    def label_origin(self) -> str:
        return self.source.label_origin()

    def missing(self) -> str:
        return self.source.missing()

    def listing(self) -> str:
        """One sample a line, with its class after a tab: where the samples are files, a list file for DATA.path.

        A name with line breaks, or bytes that are not UTF-8, stands in it in escaped form, which cannot be read back.
        """
        names = self.classes or tuple(map(str, range(1 + int(self.labels.max())))) if self.labels is not None else ()
        labels = [""] * len(self) if self.labels is None else [f"\t{names[label]}" for label in self.labels]
        return "".join(f"{self.describe(index)}{label}\n" for index, label in enumerate(labels))


def few_labels(source: Source, settings: LabelSettings) -> Source:
    """The images of a training set that LABELS chooses; the set itself where it chooses all.

    Every class gives the same number of images, at least one. A class with fewer gives all of them, with a warning.
    Raises ValueError where the images have no labels.
    """
    if settings.share == 1 and not settings.per_class:
        return source
    if source.labels is None:
        raise ValueError("LABELS: the training images have no labels to choose from")
    present = np.unique(source.labels)
    per_class = settings.per_class or max(1, round(settings.share * len(source) / len(present)))
    chosen: list[int] = []
    for label in present.tolist():
        indices = np.flatnonzero(source.labels == label)
        if len(indices) < per_class:
            name = source.classes[label] if source.classes else label
            LOG.warning("class %s has %d images, and LABELS asks for %d of each class", name, len(indices), per_class)
        generator = generator_for(torch.device("cpu"), settings.seed, "labels", label)
        order = torch.randperm(len(indices), generator=generator)
        chosen += indices[order[:per_class].numpy()].tolist()
    return Subset(source, sorted(chosen))
