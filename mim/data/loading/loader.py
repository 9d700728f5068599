"""Batches in a given order, made here or by loader processes, with what happened on the way.

Shapes: B batch.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from mim.data.batch import Batch, Note
from mim.data.loading.dataset import ImageDataset, collate
from mim.data.loading.processes import Dead, Processes
from mim.data.loading.retry import await_return
from mim.data.loading.sampler import SampleKey
from mim.errors import DataLost

NAMED = 3  # samples of a batch that an error names

Keys = list[SampleKey]


def batches(dataset: ImageDataset, order: Iterable[Keys], workers: int, pin_memory: bool) -> "Batches":
    """Batches in the given order, made by that many loader processes (0: in this one)."""
    return Batches(dataset, order, workers, pin_memory)


class Batches(Iterator[Batch]):
    """The same batches whatever the number of processes, and whether one of them dies: each is a function of its keys.

    A process that died is replaced, which the next batch notes. Raises DataLost where processes keep dying or the
    images stay away.
    """

    def __init__(self, dataset: ImageDataset, order: Iterable[Keys], workers: int, pin_memory: bool):
        self._dataset, self._notes = dataset, list[Note]()
        self._told: dict[str, float] = {}  # when what was last told of had ended
        make = partial(_made, dataset)
        self._processes = Processes(make, order, workers, self._died) if workers else None
        self._made: Iterator[Batch] = self._processes or map(make, order)
        self._pinner = _Pinner() if pin_memory and workers else None
        self._pin_here = pin_memory and not workers
        self._pinned: Future[Batch] | None = None

    def __next__(self) -> Batch:
        if self._pinned is not None:
            batch, self._pinned = self._pinned.result(), None
        else:
            batch = self._next()
            batch = batch.pin_memory() if self._pin_here or self._pinner is not None else batch
        if self._pinner is not None and self._processes is not None and self._processes.ready():
            self._pinned = self._pinner.pin(self._next())  # beside what the device does with this batch
        return batch

    def close(self) -> None:
        """Ends the loader processes at once."""
        if self._processes is not None:
            self._processes.close()

    def _next(self) -> Batch:
        try:
            batch = next(self._made)
        except Dead as error:
            source = self._dataset.source
            keys: Keys = error.task
            named = ", ".join(source.describe(index) for _, index in keys[:NAMED])
            reason = source.missing()
            raise DataLost(
                f"{error}, while a batch of {len(keys)} images was made, the first of them {named}"
                + (f". {reason}" if reason else "")
            ) from error
        return replace(batch, notes=self._fresh([*self._notes, *batch.notes]))

    def _died(self, line: str) -> None:
        note = await_return(self._dataset.source, time.monotonic())  # what it was that killed it, perhaps
        self._notes += [Note(line, f"{line}; a new one does its work again"), *([note] if note else [])]

    def _fresh(self, notes: list[Note]) -> tuple[Note, ...]:
        """Those that this process has not told of: several loader processes wait for the same mount at one time."""
        self._notes, fresh = [], list[Note]()
        for note in notes:
            if note.ended == 0 or note.began > self._told.get(note.about, 0):
                fresh.append(note)
            self._told[note.about] = max(note.ended, self._told.get(note.about, 0))
        return tuple(fresh)


class _Pinner:
    """A thread that copies batches into pinned memory."""

    def __init__(self) -> None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = ThreadPoolExecutor(1, "pin", _prepare_thread, (device,))

    def pin(self, batch: Batch) -> Future[Batch]:
        """Begins to."""
        return self._thread.submit(batch.pin_memory)


def _prepare_thread(device: int | None) -> None:
    torch.set_num_threads(1)
    if device is not None:
        torch.cuda.set_device(device)  # else pinned memory would belong to the first GPU


def _made(dataset: ImageDataset, keys: Keys) -> Batch:
    return collate(dataset.__getitems__(keys))


def in_order(indices: Iterable[int], batch: int) -> Iterator[list[SampleKey]]:
    """Evaluation batches of samples in the given order, the last one smaller; the epoch is 0."""
    held: list[SampleKey] = []
    for index in indices:
        held.append((0, index))
        if len(held) == batch:
            yield held
            held = []
    if held:
        yield held
