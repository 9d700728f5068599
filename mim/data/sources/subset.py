"""Subset: some samples of a source, such as a seeded, class-balanced choice of labelled images."""

import logging

import numpy as np
import torch

from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names
from mim.data.sources.view import View
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")


class Subset(View):
    """Some samples of a source, in the order of `rows`."""

    @property
    def chosen(self) -> list[int]:
        """The positions of the samples in the source."""
        return self._rows.tolist()

    def listing(self) -> str:
        """One sample a line, with its class after a tab: where the samples are files, a list file for DATA.path.

        A name with line breaks, or bytes that are not UTF-8, stands in it in escaped form, which cannot be read back.
        """
        names = class_names(self)
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


def split_rows(source: Source, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The rows of a source that remain, and a share of them, the same of each class, at least one image in all."""
    labels_N = source.labels if source.labels is not None else np.zeros(len(source), np.int64)
    taken: list[int] = []
    for label in np.unique(labels_N).tolist():
        indices = np.flatnonzero(labels_N == label)
        order = torch.randperm(len(indices), generator=generator_for(torch.device("cpu"), seed, "choice", label))
        taken += indices[order[: round(share * len(indices))].numpy()].tolist()
    rest = set(range(len(source))) - set(taken)
    return sorted(rest), sorted(taken)
