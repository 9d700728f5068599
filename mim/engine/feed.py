"""Feed: this rank's micro-batches on its device, step after step, with broken files reported on the way."""

from dataclasses import replace

from mim.data.loader import ImageDataset, batches
from mim.data.sampler import StepSampler
from mim.engine.distributed import World
from mim.engine.failures import BrokenFiles
from mim.engine.settings import Plan
from mim.structures import Batch


class Feed:
    """Micro-batches from step `start` to the end of the run, made by `workers` loader processes."""

    def __init__(self, data: ImageDataset, plan: Plan, world: World, start: int, workers: int, broken: BrokenFiles):
        order = StepSampler(len(data), plan.batch, plan.micro, world.rank, world.size, data.seed, start, plan.steps)
        self._batches = batches(data, order, workers, pin_memory=world.device.type == "cuda")
        self._device, self._broken = world.device, broken

    def next(self) -> Batch:
        """The next micro-batch; copies to a GPU do not make the host wait."""
        batch = next(self._batches)
        self._broken.add(batch.broken)
        return replace(
            batch,
            images_BCHW=batch.images_BCHW.to(self._device, non_blocking=True),
            labels_B=batch.labels_B.to(self._device, non_blocking=True),
        )
