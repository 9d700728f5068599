"""One process or many: what rank this is, how ranks talk, and a clean end."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mim.ops.checks import at_least

T = TypeVar("T")


class RunStopped(RuntimeError):
    """A run ends early, on every rank at the same step and for the same reason, which is its text."""


@dataclass(frozen=True, kw_only=True)
class DistributedSettings:
    """DISTRIBUTED.

    strategy: how several processes share a model; backend: of torch.distributed, `auto` takes nccl on GPUs and gloo
    on CPUs; timeout_s: seconds after which a rank that waits for the others gives up; device: `auto` takes a GPU
    where there is one.
    """

    strategy: Literal["ddp"] = "ddp"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    timeout_s: int = 1800
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        at_least("DISTRIBUTED", 1, timeout_s=self.timeout_s)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("DISTRIBUTED.device is cuda and PyTorch sees no GPU: use auto or cpu")


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers. With one process every method returns its argument."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """The rank that writes files."""
        return self.rank == 0

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


@contextmanager
def join_world(settings: DistributedSettings) -> Iterator[World]:
    """The world that torchrun's environment describes, or a world of one.

    On the way out, and where all ranks stop together (RunStopped), ranks wait for each other before the process
    group is destroyed: gloo aborts now and then otherwise. On any other error a rank leaves at once.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    use_gpu = settings.device != "cpu" and torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(local_rank)
    world = World(rank, size, torch.device("cuda", local_rank) if use_gpu else torch.device("cpu"))
    if size == 1:
        yield world
        return
    backend = settings.backend if settings.backend != "auto" else "nccl" if use_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=settings.timeout_s))
    try:
        yield world
    except RunStopped:
        _leave()
        raise
    else:
        _leave()


def _leave() -> None:
    dist.barrier()
    dist.destroy_process_group()
