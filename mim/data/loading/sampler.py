"""StepSampler: the samples of each optimizer step and rank, a pure function of the seed and the step."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from mim.ops.seeding import generator_for

SampleKey = tuple[int, int]  # (epoch, index): with the seed, they decide the augmentation of a sample


class StepSampler(Sampler[list[SampleKey]]):
    """Micro-batches of one rank, for steps start..stop-1 of a run.

    Every epoch is one permutation, drawn from (seed, epoch) and cut into global batches of `batch` rows; the samples
    that are left over do not occur in it. Micro-batch a of rank r holds rows (a * world + r) * micro onwards, so
    the global batch is the same for any number of ranks and micro-batches. A sample stands for `repeats` neighbouring
    rows of one micro-batch, and occurs once in the list.
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
    ):
        assert batch % (micro * world) == 0
        assert micro % repeats == 0
        assert samples * repeats >= batch
        self.samples, self.batch, self.micro, self.seed = samples, batch // repeats, micro // repeats, seed
        self.starts = range(rank * self.micro, self.batch, world * self.micro)
        self.steps = range(start, stop)

    def __len__(self) -> int:
        return len(self.steps) * len(self.starts)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        per_epoch = self.samples // self.batch
        drawn, order = -1, torch.empty(0, dtype=torch.int64)
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            if epoch != drawn:
                generator = generator_for(torch.device("cpu"), self.seed, "order", epoch)
                drawn, order = epoch, torch.randperm(self.samples, generator=generator)
            for start in self.starts:
                first = position * self.batch + start
                yield [(epoch, index) for index in order[first : first + self.micro].tolist()]
