"""Prefetcher: this rank's micro-batches on its device, step after step, with broken files reported on the way."""

import torch

from mim.data.batch import Batch
from mim.data.loading.loader import ImageDataset, batches
from mim.data.loading.sampler import StepSampler
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles
from mim.engine.plan import Plan


class Prefetcher:
    """Micro-batches from step `start` to the end of the run, made by `workers` loader processes."""

    def __init__(self, data: ImageDataset, plan: Plan, world: World, start: int, workers: int, broken: BrokenFiles):
        place = (world.rank, world.size)
        order = StepSampler(
            len(data), plan.batch, plan.micro_batch, *place, data.seed, start, plan.steps, repeats=data.repeats
        )
        self._batches = batches(data, order, workers, pin_memory=world.device.type == "cuda")
        self._device, self._broken = world.device, broken
        self._side = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._ahead: Batch | None = None

    def next(self) -> Batch:
        """The next micro-batch. The host does not wait for its copy to a GPU, the device does."""
        batch, self._ahead = self._ahead or self._read(), None
        assert batch is not None
        self._broken.add(batch.broken, batch.notes)
        if self._side is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._side)
            batch.keep_for(stream)
        return batch

    def prefetch(self) -> None:
        """Begins to copy the next micro-batch to a GPU, beside the work that was given to it before."""
        if self._side is not None:
            self._ahead = self._read()

    def close(self) -> None:
        """Ends the loader processes."""
        self._batches.close()

    def _read(self) -> Batch | None:
        """Another micro-batch on its device, once the side stream is through; None at the end of the run."""
        batch = next(self._batches, None)
        if batch is None or self._side is None:
            return batch
        with torch.cuda.stream(self._side):
            return batch.to(self._device)
