"""Prefetcher: the micro-batches of this rank, on its device, one after the other."""

import logging

import torch

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.loading.sampler import StepSampler
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles
from mim.engine.plan import Plan

LOG = logging.getLogger("mim")


class Prefetcher:
    """Micro-batches from step `start` to the end of a run."""

    def __init__(self, data: ImageDataset, plan: Plan, world: World, start: int, workers: int, broken: BrokenFiles):
        order = StepSampler(
            *(len(data), plan.batch, plan.micro_batch, world.rank, world.size),
            *(data.seed, start, plan.steps, data.repeats, data.balanced_labels),
        )
        self._batches = batches(data, order, workers, pin_memory=world.device.type == "cuda")
        self._device, self._broken = world.device, broken
        self._copy_stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._prefetched: Batch | None = None
        if not world.main:  # the log of other ranks goes nowhere
            LOG.addHandler(broken.outages)

    def next(self) -> Batch:
        """The next micro-batch. The device waits for its copy, the host does not. Raises DataLost."""
        batch, self._prefetched = self._prefetched or self._read(), None
        assert batch is not None
        self._broken.add(batch.broken)
        if self._copy_stream is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._copy_stream)
            batch.record_stream(stream)
        return batch

    def prefetch(self) -> None:
        """Starts to copy the next micro-batch to a GPU, while the GPU computes."""
        if self._copy_stream is not None:
            self._prefetched = self._read()

    def close(self) -> None:
        """Ends the dataloader workers."""
        self._batches.close()
        LOG.removeHandler(self._broken.outages)

    def _read(self) -> Batch | None:
        """Another micro-batch, on its device when the copy stream is done; None at the end of the run."""
        batch = next(self._batches, None)
        if batch is None or self._copy_stream is None:
            return batch
        with torch.cuda.stream(self._copy_stream):
            return batch.to(self._device)
