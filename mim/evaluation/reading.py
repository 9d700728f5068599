"""Reading samples for an evaluation: each exactly once, whatever the number of ranks.

Shapes: B batch.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim.data.batch import Batch
from mim.data.loading.loader import ImageDataset, batches, in_order
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True)
class Shown:
    """A batch, with its rows among the chosen samples; own_B: False where another image stands in for a broken one."""

    batch: Batch
    rows: list[int]
    own_B: Tensor


class Reader:
    """Reads chosen samples in batches, with that many loader processes; names each broken file once."""

    def __init__(self, batch_size: int, workers: int):
        self.batch_size, self.workers = batch_size, workers
        self._named: set[str] = set()

    def read(self, data: ImageDataset, chosen: Sequence[int], rank: int = 0, size: int = 1) -> Iterator[Shown]:
        """This rank's share of the chosen samples: rows rank, rank + size, ..."""
        rows = range(rank, len(chosen), size)
        order = list(in_order((chosen[row] for row in rows), self.batch_size))
        for number, batch in enumerate(batches(data, order, self.workers, pin_memory=False)):
            for name, reason in batch.broken:
                if name not in self._named:
                    LOG.warning("cannot read %s (%s); another image stands in for it in evaluations", name, reason)
                    self._named.add(name)
            for note in batch.notes:
                LOG.warning("%s", note.text)
            mine = list(rows[number * self.batch_size :][: len(batch.indices)])
            asked = torch.tensor([chosen[row] for row in mine])
            yield Shown(batch, mine, asked == torch.tensor(batch.indices))


def choice(samples: int, most: int, seed: int) -> list[int]:
    """At most so many of the samples, drawn by the seed; 0 for all, in order."""
    if not most:
        return list(range(samples))
    return torch.randperm(samples, generator=generator_for(torch.device("cpu"), seed, "choice"))[:most].tolist()
