"""Batches of images in a given order, made in this process or by dataloader workers."""

from collections.abc import Iterable, Iterator
from functools import partial

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset, collate
from mim.data.loading.sampler import SampleKey
from mim.data.loading.workers import Keys, Results


def batches(dataset: ImageDataset, order: Iterable[Keys], workers: int, pin_memory: bool = False) -> Results[Batch]:
    """Batches in the given order. Each is a function of its keys alone, so the number of workers changes none.

    Raises DataLost where a worker dies or the images stay away.
    """
    return Results(partial(_batch, dataset), order, workers, dataset.source, pin_memory)


def in_order(indices: Iterable[int], size: int) -> Iterator[Keys]:
    """The samples of these indices in batches of that size, the last one smaller; their epoch is 0."""
    keys: list[SampleKey] = []
    for index in indices:
        keys.append((0, index))
        if len(keys) == size:
            yield keys
            keys = []
    if keys:
        yield keys


def _batch(dataset: ImageDataset, keys: Keys) -> Batch:
    return collate(dataset.__getitems__(keys))
