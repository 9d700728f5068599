"""One process or many: what rank this is, how ranks talk, and a clean end."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mim.engine.distributed.heartbeat import LOSING, SILENT, Heartbeat, told
from mim.engine.distributed.rendezvous import meet
from mim.engine.settings import DistributedSettings
from mim.engine.signals import deaf
from mim.errors import RanksLost, RunStopped

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers. With one process every method returns its argument.

    heart: by which the peers hear of this one, where there is a process group.
    """

    rank: int
    size: int
    device: torch.device
    heart: Heartbeat | None = None

    def describe(self, strategy: str) -> str:
        """The devices of the run, and the strategy where there is a process group."""
        gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else f"CPU, {torch.get_num_threads()} threads"
        return f"{self.size} x {name}; {strategy}" if self.grouped else name

    @property
    def main(self) -> bool:
        """The rank that writes files."""
        return self.rank == 0

    @property
    def grouped(self) -> bool:
        """Whether there is a process group, under torchrun even of one process."""
        return self.heart is not None

    def set_phase(self, phase: str) -> None:
        """Tells the peers what this rank does now: `reading images of step 7`. All ranks tell the same in turn."""
        if self.heart is not None:
            self.heart.set_phase(phase)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, element by element."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Gives every rank the main rank's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one rank after the other; ranks may have different numbers of rows."""
        if self.size == 1:
            return rows
        counts = self.sum(torch.eye(self.size, dtype=torch.long, device=self.device)[self.rank] * len(rows)).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_objects(self, own: T) -> list[T]:
        """A picklable value of every rank, by rank. A host sync."""
        if self.size == 1:
            return [own]
        found: list[T] = [own] * self.size
        dist.all_gather_object(found, own)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main rank makes, on every rank. A ValueError there is raised on every rank. A host sync."""
        made: list[T | ValueError | None] = [None]
        if self.main:
            try:
                made = [make()]
            except ValueError as error:
                made = [error]
        if self.size > 1:
            dist.broadcast_object_list(made, 0)
        if isinstance(made[0], ValueError):
            raise made[0]
        return made[0]  # type: ignore[return-value]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank does what is inside before the others do, for what only one may download or write."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Waits until every rank is here."""
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
    """The world that torchrun's environment describes, or a world of one.

    On the way out, and where all ranks stop together (RunStopped), ranks wait for each other before the process
    group is destroyed: gloo aborts now and then otherwise. On any other error a rank leaves at once, and tells it.
    Raises RanksLost where the others are gone, ValueError where DISTRIBUTED.device is cuda and there is no GPU.
    """
    device = device_of(settings)
    use_gpu = device.type == "cuda"
    if use_gpu:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    backend = settings.backend if settings.backend != "auto" else "nccl" if use_gpu else "gloo"
    timeout = timedelta(seconds=settings.timeout_s)
    spare = timedelta(seconds=10 * SILENT)  # so that the heartbeat, which can name a rank, is first
    heart = None
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store = meet(store, rank, size, settings.timeout_s)
        heart = Heartbeat(store, rank, size, settings.timeout_s)  # before all that may wait for a rank
        group = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=timeout + spare)
    except (RuntimeError, TimeoutError) as error:
        if heart is not None:
            heart.leave(LOSING)
        raise RanksLost(
            f"rank {os.environ['RANK']} of {os.environ.get('WORLD_SIZE')} could not join the others within "
            f"DISTRIBUTED.timeout_s {settings.timeout_s}: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield World(rank, size, device, heart)
    except RunStopped:
        _leave(heart)
        raise
    except BaseException as error:
        if not _is_of_the_group(error):
            heart.leave(f"{type(error).__name__}: {error}")
            raise
        with deaf():  # torchrun ends the others as soon as one is gone, and this one has yet to say which
            missing = heart.lost() or str(error).splitlines()[0]
        heart.leave(LOSING)
        raise RanksLost(told(rank, missing)) from error
    else:
        _leave(heart)


def _is_of_the_group(error: BaseException) -> bool:
    """Whether an error says that ranks could not exchange something; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _leave(heart: Heartbeat) -> None:
    dist.barrier()
    heart.leave()
    dist.destroy_process_group()
