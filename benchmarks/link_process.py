"""One of the two processes of link.py: steps of each case, and collectives alone."""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from mim import build, load_config
from mim.config import Config
from mim.engine.distributed.world import World, join_world
from mim.lab.dryrun.measure import WARMUP_STEPS, dry_trainer
from mim.lab.dryrun.task import dry_task
from mim.lab.dryrun.trainer import DryTrainer
from mim.lab.plan.hardware import sent
from mim.lab.plan.scaling import FP32

PROCESSES = 2
INTERFACE = "link"  # the name of each end, in its own namespace
COUNTERS = Path("/proc/self/net/dev")  # of this namespace, as the next
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class Case(NamedTuple):
    """How a step is exchanged."""

    strategy: str
    accumulation: int

    def __str__(self) -> str:
        return f"{self.strategy}, {self.accumulation} accumulated" if self.accumulation > 1 else self.strategy


CASES = [Case(strategy, accumulation) for strategy in ("ddp", "fsdp") for accumulation in (1, 2)]
PLAIN = Case("ddp", 2)  # its first micro-batch computes without exchange


class Step(NamedTuple):
    """What a step took, the mean of several."""

    seconds: float
    sent: float  # bytes on the link, with headers
    forward_s: float  # of the first micro-batch
    backward_s: float


class Speeds(NamedTuple):
    """Bytes of a ring that each process sends in a second, in a collective alone."""

    all_reduce: float
    all_gather: float
    reduce_scatter: float


def config(args: argparse.Namespace, case: Case) -> Config:
    """The config of a case."""
    cfg = load_config(args.config, args.overrides)
    batch = cfg.DATA.batch_size * PROCESSES * case.accumulation
    return cfg.replace({"TRAIN.batch": batch, "DISTRIBUTED.strategy": case.strategy, "DISTRIBUTED.device": "cpu"})


class Marks:
    """When the phases of a step began."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._phase, self._since = "end", time.perf_counter()

    def on_phase(self, phase: str) -> None:
        """Ends the phase before it."""
        now = time.perf_counter()
        self.seconds[self._phase].append(now - self._since)
        self._phase, self._since = phase, now


class Side:
    """One of the two processes, with a trainer of each case."""

    def __init__(self, args: argparse.Namespace, world: World):
        self.trainers: dict[Case, tuple[DryTrainer, Marks]] = {}
        for case in CASES:
            marks, dry = Marks(), dry_task(config(args, case))
            trainer = dry_trainer(dry, dry.plan(world.size), world.device, marks.on_phase, world=world)
            self.trainers[case] = trainer, marks
            for _ in range(WARMUP_STEPS):
                trainer.take_step()

    def steps(self, strategy: str, accumulation: int, count: int) -> Step:
        """Takes so many steps of a case."""
        trainer, marks = self.trainers[Case(strategy, accumulation)]
        dist.barrier()
        marks.seconds.clear()
        before, begin = link_bytes(), time.perf_counter()
        for _ in range(count):
            trainer.take_step()
        dist.barrier()
        seconds = (time.perf_counter() - begin) / count
        passes = [median(marks.seconds[phase][::accumulation]) for phase in ("forward", "backward")]
        return Step(seconds, (link_bytes() - before) / count, *passes)

    def collectives(self, size: int) -> Speeds:
        """The speed of each alone, with so many bytes. What comes before them fills the queues of the link."""
        whole, part = torch.zeros(size // FP32), torch.zeros(size // FP32 // PROCESSES)
        dist.all_reduce(part)
        seconds = []
        for collective in (
            lambda: dist.all_reduce(whole),
            lambda: dist.all_gather_into_tensor(whole, part),
            lambda: dist.reduce_scatter_tensor(part, whole),
        ):
            dist.barrier()
            begin = time.perf_counter()
            collective()
            seconds.append(time.perf_counter() - begin)
        moved = sent(size, PROCESSES)
        return Speeds(2 * moved / seconds[0], moved / seconds[1], moved / seconds[2])


def link_bytes() -> int:
    """Bytes that left through this end of the link."""
    line = next(line for line in COUNTERS.read_text().splitlines() if line.strip().startswith(f"{INTERFACE}:"))
    return int(line.split(":")[1].split()[8])


def serve(args: argparse.Namespace) -> None:
    """Waits until the link is there, and then answers each line on stdin, a method of Side with its arguments."""
    torch.set_num_threads(1)
    CONGESTION.write_text("reno")  # whatever the default of the machine is
    answer("ready")
    if not sys.stdin.readline():
        return
    with join_world(build.engine_settings(config(args, PLAIN)).distributed) as world:
        side = Side(args, world)
        answer("warm")
        for line in sys.stdin:
            method, arguments = json.loads(line)
            answer(getattr(side, method)(*arguments))


def answer(value: Any) -> None:
    """To the process that measures."""
    print(json.dumps(value), flush=True)
