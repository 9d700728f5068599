"""Fewer labels: a seeded, class-balanced part of a training set."""

import logging

import numpy as np
import torch

from mim.data.settings import LabelSettings
from mim.data.sources.base import NeedOf, Source, Stored
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")


class Subset(Source):
    """Some samples of a source, in the given order."""

    def __init__(self, source: Source, chosen: list[int]):
        super().__init__(source.split, source.settings)
        self.source, self.chosen, self.classes = source, chosen, source.classes
        self.labels = source.labels[chosen] if source.labels is not None else None

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> Stored:
        return self.source.read(self.chosen[index])

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return self.source.read_reduced(self.chosen[index], need_of)

    def describe(self, index: int) -> str:
        return self.source.describe(self.chosen[index])

    def missing(self) -> str:
        return self.source.missing()

    def listing(self) -> str:
        """One sample a line, with its class behind a tab: a list file that DATA.path can name where these are files.

        Of a name with line breaks or bytes that are no UTF-8 it holds what is shown of it, which cannot be read back.
        """
        names = self.classes or tuple(map(str, range(1 + int(self.labels.max())))) if self.labels is not None else ()
        labels = [""] * len(self) if self.labels is None else [f"\t{names[label]}" for label in self.labels]
        return "".join(f"{self.describe(index)}{label}\n" for index, label in enumerate(labels))


def few_labels(source: Source, settings: LabelSettings) -> Source:
    """The part of a labelled training set that LABELS asks for; the set itself where that is all of it.

    Every class gives as many images, at least one, or all of them where it has fewer, with a warning. Raises
    ValueError where the images have no labels.
    """
    if settings.share == 1 and not settings.per_class:
        return source
    if source.labels is None:
        raise ValueError("LABELS: the training images have no labels to choose from")
    present = np.unique(source.labels)
    wanted = settings.per_class or max(1, round(settings.share * len(source) / len(present)))
    chosen: list[int] = []
    for label in present.tolist():
        held = np.flatnonzero(source.labels == label)
        if len(held) < wanted:
            name = source.classes[label] if source.classes else label
            LOG.warning(
                "class %s has %d images, fewer than the %d a class that LABELS asks for", name, len(held), wanted
            )
        order = torch.randperm(len(held), generator=generator_for(torch.device("cpu"), settings.seed, "labels", label))
        chosen += held[order[:wanted].numpy()].tolist()
    return Subset(source, sorted(chosen))
