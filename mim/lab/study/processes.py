"""Chains of runs, several at a time, each run in a process of its own.

A run that fails ends its own chain and no other. Processes are forked from one that has imported the toolkit already,
so that each starts at once and its peak of memory is its own.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from mim import config
from mim.errors import DataLost, RunStopped
from mim.run import train

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One run. name: for messages; text: gives its config when it starts, since it may need what came before it."""

    name: str
    folder: Path
    text: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: with a summary, or with the reason why there is none."""

    job: Job
    summary: Summary | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Active:
    job: Job
    rest: Sequence[Job]
    process: ForkServerProcess
    answer: Connection
    slot: int


def run_chains(chains: Sequence[Sequence[Job]], jobs: int, ended: Callable[[Ended], None]) -> None:
    """Runs every chain in its order, `jobs` chains at a time. `ended` is told of each run, and of each that a failure
    before it in its chain kept from starting.

    Jobs share the CPU cores, and are spread over the GPUs where there are several.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mim.run"])
    waiting = deque(tuple(chain) for chain in chains if chain)
    free = deque(range(jobs))
    active: list[_Active] = []
    try:
        while waiting or active:
            while waiting and free:
                job, *rest = waiting.popleft()
                active.append(_start(context, job, rest, free.popleft(), jobs))
            ready = wait([each.answer for each in active])
            for done in [each for each in active if each.answer in ready]:
                active.remove(done)
                free.appendleft(done.slot)
                found = _answered(done)
                ended(found)
                if found.summary is None:
                    for job in done.rest:
                        ended(Ended(job, None, f"{done.job.name} failed before it"))
                elif done.rest:
                    waiting.appendleft(tuple(done.rest))
    finally:
        for left in active:
            left.process.terminate()
            left.process.join()


def _start(context: Any, job: Job, rest: Sequence[Job], slot: int, jobs: int) -> _Active:
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    gpu = slot % torch.cuda.device_count() if jobs > 1 and torch.cuda.device_count() > 1 else None
    process = context.Process(target=_work, args=(theirs, job.text(), str(job.folder), threads, gpu))
    process.start()
    theirs.close()
    return _Active(job, rest, process, ours, slot)


def _answered(done: _Active) -> Ended:
    try:
        summary, reason = done.answer.recv()
    except EOFError:  # it died without a word
        summary, reason = None, ""
    done.process.join()
    done.answer.close()
    if summary is None and not reason:
        reason = f"its process ended with code {done.process.exitcode} (negative: killed by that signal)"
    return Ended(done.job, summary, reason)


def _work(answer: Connection, text: str, folder: str, threads: int, gpu: int | None) -> None:
    """One run, in its own process."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    torch.set_num_threads(threads)
    try:
        answer.send((train(config.parse_config(text), output=Path(folder), quiet=True), ""))
    except KeyboardInterrupt:
        pass
    except (ValueError, RunStopped, DataLost) as error:
        answer.send((None, str(error)))
    except Exception as error:  # a fault of one run must not end the others
        answer.send((None, f"{type(error).__name__}: {error}; {folder}/log.txt"))
