"""Ranks: DDP, FSDP2 and HSDP on two devices, each saved and resumed, by two processes of one torchrun.

The stand-in's NCCL has no other rank: each has for it what this one has. So values of the main rank are made on each.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import torch
import torch.distributed as dist
import values
import walking
from guard import guard_steps
from runs import MAE, Keys, pairs, walk
from torch import Tensor
from torch.distributed.tensor import _collective_utils

from mim.engine.distributed.world import World
from mim.run import train

DEVICES = 2
SHARED: Keys = {"DATA.batch_size": 60, "TRAIN.ema": 0.9, "TRAIN.clip": 1.0}
STRATEGIES: dict[str, Keys] = {"ddp": {}, "fsdp": {}, "hsdp": {"DISTRIBUTED.shard_devices": 1}}
T = TypeVar("T")


def both(here: Path) -> str:
    """Starts the two ranks, which walk PATHS. Raises RuntimeError with their output where a path failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={DEVICES}"]
    words = [*launcher, "--master-addr=127.0.0.1", f"--master-port={port}", __file__, str(here)]
    environment = {**os.environ, "FAKE_DEVICES": str(DEVICES)}
    process = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in process.stdout.splitlines() if line.startswith("walked")]
    if process.returncode or len(lines) < DEVICES * len(OF_A_RANK):
        raise RuntimeError(f"{len(lines)} of {DEVICES * len(OF_A_RANK)} paths of ranks walked\n{process.stdout}")
    return f"{len(lines)} paths of ranks\n  " + "\n  ".join(lines)


def train_run(strategy: str, here: Path) -> str:
    """A run of one epoch."""
    return walk(MAE, _keys(strategy), here / strategy, here)


def compile_run(strategy: str, here: Path) -> str:
    """A run of one epoch, in which nothing is compiled from the third step on."""
    torch.compiler.reset()
    keys = {**_keys(strategy), "TRAIN.compile": True, "HEAD.depth": 1}
    return walk(MAE, keys, here / f"{strategy}_compiled", here, lambda: torch.compiler.set_stance("fail_on_recompile"))


def resume_run(strategy: str, here: Path) -> str:
    """The same run, prolonged by an epoch."""
    with guard_steps() as steps:
        train(MAE, pairs(_keys(strategy), here), here / strategy, quiet=True, extend=2)
    return f"{len(steps)} steps, {steps[-1]}"


def _alone(path: Callable[[Path], str], here: Path) -> str:
    """Walks a path, and leaves the process group where it failed within."""
    try:
        return path(here)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _keys(strategy: str) -> Keys:
    return {**SHARED, "DISTRIBUTED.strategy": strategy, **STRATEGIES[strategy]}


def _on_each(self: World, make: Callable[[], T]) -> T:
    return make()


def _of_each(self: World, value: T) -> list[T]:
    return [value] * self.size


def _twice(self: World, rows: Tensor) -> Tensor:
    return torch.cat([rows] * self.size)


PATHS = {"two devices": both}
OF_A_RANK = {
    **{name: partial(train_run, name) for name in STRATEGIES},
    **{f"{name} resumed": partial(resume_run, name) for name in STRATEGIES},
    **{f"{name} compiled": partial(compile_run, name) for name in ("ddp", "fsdp")},
}

if __name__ == "__main__":
    values.prepare()
    with contextlib.ExitStack() as stack:
        for method, stub in {"from_main": _on_each, "gather": _twice, "gather_objects": _of_each}.items():
            stack.enter_context(mock.patch.object(World, method, stub))
        if os.environ["RANK"] != "0":  # to the stand-in each rank is rank 0, and so would send
            stack.enter_context(mock.patch.object(_collective_utils, "scatter", return_value=None))
        sys.exit(walking.walk_all({name: partial(_alone, path) for name, path in OF_A_RANK.items()}, Path(sys.argv[1])))
