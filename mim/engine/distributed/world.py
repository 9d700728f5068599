"""World: the ranks of a run, how they exchange values, and how they end together."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mim.engine.distributed.heartbeat import LOST_ANOTHER, SILENT, Heartbeat, lost_message
from mim.engine.distributed.rendezvous import rendezvous
from mim.engine.settings import DistributedSettings
from mim.engine.signals import ignore_sigterm
from mim.errors import RanksLost, RunStopped

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, and the rank of this one. With one process every method returns its argument."""

    rank: int
    size: int
    device: torch.device
    heartbeat: Heartbeat | None = None  # None without a process group

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    @property
    def grouped(self) -> bool:
        """Whether there is a process group: under torchrun, even of one process."""
        return self.heartbeat is not None

    def describe(self, strategy: str) -> str:
        """The devices of the run, and with a process group the strategy."""
        gpu = self.device.type == "cuda"
        threads = torch.get_num_threads()
        name = torch.cuda.get_device_name(self.device) if gpu else f"CPU with {threads} thread{'s' * (threads > 1)}"
        return f"{self.size} x {name}, {strategy}" if self.grouped else name

    def set_phase(self, phase: str) -> None:
        """Tells the other ranks what this one does: `reading images of step 7`. All ranks must have equal phases."""
        if self.heartbeat is not None:
            self.heartbeat.set_phase(phase)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, element by element."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites each tensor with the values of the main rank."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of ranks. Ranks may have different numbers of rows."""
        if self.size == 1:
            return rows
        counts = self.sum(torch.eye(self.size, dtype=torch.long, device=self.device)[self.rank] * len(rows)).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_objects(self, value: T) -> list[T]:
        """A picklable value of each rank, in the order of ranks. A host sync."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """Calls `make` on the main rank and returns its result on all. A host sync.

        Raises on every rank the ValueError that `make` raises.
        """
        result: list[T | ValueError | None] = [None]
        if self.main:
            try:
                result = [make()]
            except ValueError as error:
                result = [error]
        if self.size > 1:
            dist.broadcast_object_list(result, 0)
        if isinstance(result[0], ValueError):
            raise result[0]
        return result[0]  # type: ignore[return-value]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank runs the with-block before the others, for what only one process may download or write."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


def device_of(settings: DistributedSettings) -> torch.device:
    """The device of this process. Raises ValueError where DISTRIBUTED.device is cuda and there is no GPU."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("DISTRIBUTED.device is cuda and PyTorch sees no GPU: use auto or cpu")
    if settings.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join_world(settings: DistributedSettings) -> Iterator[World]:
    """The processes that torchrun started, or this process alone.

    At the end, and where all ranks stop together (RunStopped), ranks wait for each other before the process group is
    destroyed, because gloo aborts now and then otherwise. On any other error a rank reports it and ends at once.

    Raises RanksLost where other ranks are gone, ValueError where DISTRIBUTED.device is cuda and there is no GPU.
    """
    device = device_of(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    backend = settings.backend if settings.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=settings.timeout_s)
    spare = timedelta(seconds=10 * SILENT)  # the heartbeat, which can name a rank, must be first
    heartbeat = None
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store = rendezvous(store, rank, size, settings.timeout_s)
        heartbeat = Heartbeat(store, rank, size, settings.timeout_s)  # before anything that may wait for a rank
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=timeout + spare)
    except (RuntimeError, TimeoutError) as error:
        if heartbeat is not None:
            heartbeat.leave(LOST_ANOTHER)
        raise RanksLost(
            f"rank {os.environ['RANK']} of {os.environ.get('WORLD_SIZE')} could not join the others within "
            f"DISTRIBUTED.timeout_s {settings.timeout_s}: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield World(rank, size, device, heartbeat)
    except RunStopped:
        _leave(heartbeat)
        raise
    except BaseException as error:
        if not _is_of_the_group(error):
            heartbeat.leave(f"{type(error).__name__}: {error}")
            raise
        with ignore_sigterm():  # torchrun ends the others as soon as one is gone, and this one must first say which
            missing = heartbeat.lost_ranks() or str(error).splitlines()[0]
        heartbeat.leave(LOST_ANOTHER)
        raise RanksLost(lost_message(rank, missing)) from error
    else:
        _leave(heartbeat)


def _is_of_the_group(error: BaseException) -> bool:
    """Whether ranks could not exchange something; errors of gloo have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _leave(heartbeat: Heartbeat) -> None:
    dist.barrier()
    heartbeat.leave()
    dist.destroy_process_group()
