"""Reader: the samples of an evaluation, each exactly once, with any number of ranks, and without broken files.

Shapes: B batch.
"""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import Results, in_order
from mim.engine.distributed.world import World
from mim.errors import DataLost
from mim.metric_keys import LEFT_OUT_FILES, LEFT_OUT_NAMES
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")

NAMED = 100  # files that a summary names


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """A batch of an evaluation, with at least one image."""

    batch: Batch  # images on the host
    rows: list[int]  # position of each image among the chosen samples

    def copy(self) -> "EvaluationBatch":
        """With tensors of its own: each tensor from a dataloader worker holds an open file."""
        return replace(self, batch=self.batch.clone())


class Reader:
    """Reads chosen samples in batches, and leaves broken files out.

    Each reading starts its own dataloader workers: between two evaluations they would only take memory.
    """

    def __init__(self, batch_size: int, workers: int):
        self.batch_size, self.workers = batch_size, workers
        self._broken: dict[str, str] = {}  # why a file of this rank was left out, by name
        self._named: set[str] = set()

    def read(
        self, data: ImageDataset, samples: Sequence[int], rank: int = 0, size: int = 1, mixed: bool = False
    ) -> Generator[EvaluationBatch, None, None]:
        """The batches of this rank: samples rank, rank + size, ..., without broken files. Call `settle` behind it.

        mixed: see ImageDataset.readable.
        """
        rows = range(rank, len(samples), size)
        order = in_order([samples[row] for row in rows], self.batch_size)
        make = partial(data.readable, mixed=mixed)
        with closing(Results(make, order, self.workers, data.source, pin_memory=False)) as loaded:
            for number, batch in enumerate(loaded):
                self._broken.update(batch.broken)
                indices = set(batch.indices)
                batch_rows = rows[number * self.batch_size :][: self.batch_size]
                if indices:
                    yield EvaluationBatch(batch, [row for row in batch_rows if samples[row] in indices])

    def left_out(self, world: World | None = None) -> dict[str, str]:
        """Why each file was left out so far, over ranks, by name."""
        for broken in [self._broken] if world is None else world.gather_objects(self._broken):
            self._broken = broken | self._broken
        return dict(sorted(self._broken.items()))

    def settle(self, images: int, world: World | None = None) -> dict[str, str]:
        """Adds up what all readings left out, over ranks, and names each file once in the log.

        Args:
            images: number of images of the last reading, over ranks, without those that were left out.
            world: of the ranks that shared the reading.

        Returns the reason for each file. Raises DataLost, on all ranks, where files were left out and no image is left.
        """
        self.left_out(world)
        new = self._broken.keys() - self._named
        for name in sorted(new):
            LOG.warning("cannot read %s (%s): it is left out", name, self._broken[name])
        if new and len(self._broken) > 1:
            LOG.warning("evaluations leave out %d broken images", len(self._broken))
        self._named |= new
        if self._broken and not images:
            name, reason = next(iter(self._broken.items()))
            raise DataLost(f"none of the images of an evaluation can be read, such as {name} ({reason})")
        return dict(sorted(self._broken.items()))


def left_out_metrics(broken: Mapping[str, str]) -> dict[str, Any]:
    """What Reader.settle returned, for a summary: how many files were left out, and at most 100 of their names."""
    names = [f"{name}: {reason}" for name, reason in broken.items()]
    return {LEFT_OUT_FILES: len(names), LEFT_OUT_NAMES: names[:NAMED]} if names else {}


def readable_images(data: ImageDataset, count: int, seed: int) -> EvaluationBatch:
    """Up to `count` images that can be read, drawn by the seed. Raises DataLost where none can be read."""
    reader, parts = Reader(count, 0), []
    order = choose_samples(len(data), len(data), seed)
    for part in reader.read(data, order):
        parts.append(part)
        if sum(len(each.rows) for each in parts) >= count:
            break
    reader.settle(len(parts))
    rows = [row for part in parts for row in part.rows][:count]
    images_BCHW = torch.cat([part.batch.images_BCHW for part in parts])[:count]
    labels_B = torch.cat([part.batch.labels for part in parts])[:count]
    return EvaluationBatch(Batch(images_BCHW, labels_B, tuple(order[row] for row in rows)), rows)


def choose_samples(samples: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of the samples, drawn by the seed; with limit 0 all of them, in order."""
    if not limit:
        return list(range(samples))
    return torch.randperm(samples, generator=generator_for(torch.device("cpu"), seed, "choice"))[:limit].tolist()
