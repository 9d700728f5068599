"""StepSampler: the samples of each optimizer step and rank, a pure function of the seed and the step.

Shapes: N samples of a data set or an epoch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from mim.ops.seeding import generator_for

REPETITION = 2**32  # what each repetition of a sample in an epoch adds to the epoch of its key
SampleKey = tuple[int, int]  # (epoch, index): with the seed, they decide the augmentation of a sample


class StepSampler(Sampler[list[SampleKey]]):
    """Micro-batches of one rank, for steps start..stop-1 of a run.

    Every epoch is one permutation, drawn from (seed, epoch) and cut into global batches of `batch` rows; the samples
    that are left over do not occur in it. Micro-batch a of rank r holds rows (a * world + r) * micro onwards, so
    the global batch is the same for any number of ranks and micro-batches. A sample stands for `repeats` neighbouring
    rows of one micro-batch, and occurs once in the list.

    With `label_N`, the class of each sample, an epoch is as long, and has each class equally often: see balanced_order.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        micro: int,
        rank: int,
        world: int,
        seed: int,
        start: int,
        stop: int,
        repeats: int = 1,
        label_N: np.ndarray | None = None,
    ):
        assert batch % (micro * world) == 0
        assert micro % repeats == 0
        assert samples * repeats >= batch
        self.samples, self.batch, self.micro, self.seed = samples, batch // repeats, micro // repeats, seed
        self.starts = range(rank * self.micro, self.batch, world * self.micro)
        self.steps, self.label_N = range(start, stop), label_N

    def __len__(self) -> int:
        return len(self.steps) * len(self.starts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        per_epoch = self.samples // self.batch
        drawn, index_N, epoch_N = -1, torch.empty(0), torch.empty(0)
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            if epoch != drawn:
                drawn, (index_N, epoch_N) = epoch, self._order(epoch)
            for start in self.starts:
                first = position * self.batch + start
                rows = slice(first, first + self.micro)
                yield list(zip(epoch_N[rows].tolist(), index_N[rows].tolist(), strict=True))

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The index of each sample of an epoch, and the epoch of its key."""
        generator = generator_for(torch.device("cpu"), self.seed, "order", epoch)
        if self.label_N is None:
            return torch.randperm(self.samples, generator=generator), torch.tensor(epoch).expand(self.samples)
        index_N, repetition_N = balanced_order(self.label_N, generator)
        return index_N, epoch + repetition_N * REPETITION


def balanced_order(label_N: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many samples as there are labels, each class equally often, and the number of the repetition of each.

    The numbers of two classes differ by one at most. A class gives all of its samples before one of them again, so a
    frequent class gives some of them, and a rare one each of them several times. Samples of label -1 are not drawn.
    """
    classes = np.unique(label_N[label_N >= 0]).tolist()
    share, left_over = divmod(len(label_N), len(classes))
    has_one_more = torch.randperm(len(classes), generator=generator) < left_over
    indices, repetitions = list[Tensor](), list[Tensor]()
    for label, one_more in zip(classes, has_one_more.tolist(), strict=True):
        own_M, count = torch.from_numpy(np.flatnonzero(label_N == label)), share + one_more
        rounds = -(-count // len(own_M))
        order_M = [own_M[torch.randperm(len(own_M), generator=generator)] for _ in range(rounds)]
        indices.append(torch.cat([*order_M, own_M[:0]])[:count])
        repetitions.append(torch.arange(rounds).repeat_interleave(len(own_M))[:count])
    order_N = torch.randperm(len(label_N), generator=generator)
    return torch.cat(indices)[order_N], torch.cat(repetitions)[order_N]
