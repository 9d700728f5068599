"""Subset: some samples of a source, such as a seeded choice of labelled images."""

import logging
from itertools import islice, zip_longest

import numpy as np
import torch

from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import Source
from mim.data.sources.classes import class_labels
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
        """One sample a line, with its label after a tab: where the samples are files, a list file for DATA.path.

        Several classes have bars between them, several numbers tabs; a mask has no text. A name with line breaks, or
        bytes that are not UTF-8, stands in it in escaped form, which cannot be read back.
        """
        return "".join(f"{self.describe(index)}{self._label_text(index)}\n" for index in range(len(self)))

    def _label_text(self, index: int) -> str:
        spec, labels = self.label_spec, self.labels
        if spec is None or labels is None:
            return ""
        if spec.kind == "class":
            return f"\t{spec.names[labels[index]]}"
        if spec.kind == "classes":
            return "\t" + "|".join(name for name, is_so in zip(spec.names, labels[index], strict=True) if is_so)
        return "".join(f"\t{number:g}" for number in labels[index])


def few_labels(source: Source, settings: LabelSettings) -> Source:
    """The images of a training set that LABELS chooses; the set itself where it chooses all.

    Of kind class, `share` and `per_class` take the same number of images of every class, at least one; a class with
    fewer gives all of them, with a warning. `count` takes that many in all: one of each class after the other, and on
    from the first, until there are enough; so 10 images are among the 50 of the same seed. Of other kinds, `share`
    takes whole groups where there are any, until there are at least so many images, else single ones as `count` does.

    Raises ValueError where the images have no labels, `per_class` is set and they are no classes, or `count` is larger
    than the set.
    """
    if settings.share == 1 and not settings.per_class and not settings.count:
        return source
    if source.label_kind is None:
        raise ValueError("LABELS: the training images have no labels to choose from")
    if settings.count > len(source):
        raise ValueError(
            f"LABELS.count is {settings.count}, and there are {len(source):,} training images: use at most as many"
        )
    label_N = class_labels(source)
    if settings.count:
        return Subset(source, _first(source, label_N, settings))
    if label_N is not None:
        return Subset(source, _per_class(source, label_N, settings))
    if settings.per_class:
        raise ValueError(
            f"LABELS.per_class is for labels of kind class, and these are of kind {source.label_kind}: use "
            "LABELS.share or LABELS.count"
        )
    return Subset(source, _share(source, settings))


def _per_class(source: Source, label_N: np.ndarray, settings: LabelSettings) -> list[int]:
    present = np.unique(label_N)
    per_class = settings.per_class or max(1, round(settings.share * len(source) / len(present)))
    chosen: list[int] = []
    for label in present.tolist():
        order = _drawn(label_N, label, settings.seed)
        if len(order) < per_class:
            name = source.classes[label] if source.classes else label
            LOG.warning("class %s has %d images, and LABELS asks for %d of each class", name, len(order), per_class)
        chosen += order[:per_class].tolist()
    return sorted(chosen)


def _first(source: Source, label_N: np.ndarray | None, settings: LabelSettings) -> list[int]:
    """LABELS.count images: the first of each class, in a drawn order of the classes, then the second, and so on."""
    if label_N is None:
        return sorted(_permutation(len(source), settings.seed, "labels").tolist()[: settings.count])
    present = np.unique(label_N)
    present = present[_permutation(len(present), settings.seed, "classes")]
    orders = [_drawn(label_N, label, settings.seed).tolist() for label in present.tolist()]
    turns = (index for round_ in zip_longest(*orders) for index in round_ if index is not None)
    return sorted(islice(turns, settings.count))


def _share(source: Source, settings: LabelSettings) -> list[int]:
    count = max(1, round(settings.share * len(source)))
    group_N = np.arange(len(source)) if source.groups is None else source.groups
    groups, sizes = np.unique(group_N, return_counts=True)
    order = _permutation(len(groups), settings.seed, "labels")
    enough = 1 + int(np.searchsorted(sizes[order].cumsum(), count))
    return np.flatnonzero(np.isin(group_N, groups[order[:enough]])).tolist()


def _drawn(label_N: np.ndarray, label: int, seed: int) -> np.ndarray:
    """The images of a class, in a drawn order."""
    indices = np.flatnonzero(label_N == label)
    return indices[_permutation(len(indices), seed, "labels", label)]


def _permutation(count: int, seed: int, purpose: str, *position: int) -> np.ndarray:
    return torch.randperm(count, generator=generator_for(torch.device("cpu"), seed, purpose, *position)).numpy()
