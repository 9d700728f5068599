"""Reader: the samples of an evaluation, each exactly once, with any number of ranks.

Shapes: B batch.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches, in_order
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """A batch of an evaluation."""

    batch: Batch  # images on the host
    rows: list[int]  # position of each image among the chosen samples
    readable_B: Tensor  # False where another image replaces a broken one

    def copy(self) -> "EvaluationBatch":
        """With tensors of its own: each tensor from a dataloader worker holds an open file."""
        return replace(self, batch=self.batch.clone())


class Reader:
    """Reads chosen samples in batches, and names each broken file once.

    Each reading starts its own dataloader workers: between two evaluations they would only take memory.
    """

    def __init__(self, batch_size: int, workers: int):
        self.batch_size, self.workers = batch_size, workers
        self._named: set[str] = set()

    def read(
        self, data: ImageDataset, samples: Sequence[int], rank: int = 0, size: int = 1
    ) -> Iterator[EvaluationBatch]:
        """The batches of this rank: samples rank, rank + size, ..."""
        rows = range(rank, len(samples), size)
        order = in_order([samples[row] for row in rows], self.batch_size)
        with closing(batches(data, order, self.workers)) as loaded:
            for number, batch in enumerate(loaded):
                for name, reason in batch.broken:
                    if name not in self._named:
                        LOG.warning("cannot read %s (%s); another image replaces it in evaluations", name, reason)
                        self._named.add(name)
                batch_rows = list(rows[number * self.batch_size :][: len(batch.indices)])
                readable_B = torch.tensor([index for _, index in order[number]]) == torch.tensor(batch.indices)
                yield EvaluationBatch(batch, batch_rows, readable_B)


def choose_samples(samples: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of the samples, drawn by the seed; with limit 0 all of them, in order."""
    if not limit:
        return list(range(samples))
    return torch.randperm(samples, generator=generator_for(torch.device("cpu"), seed, "choice"))[:limit].tolist()
