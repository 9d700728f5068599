"""Chains of runs, several at a time, each run in a process of its own.

A run that fails ends its own chain and no other. Processes are forked from one that has imported the toolkit already,
so that each starts at once and its peak of memory is its own; on Windows each imports it anew.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mim.config import parse_config
from mim.engine.run_folder import RunFolder
from mim.errors import DataLost, ExitCode, RunStopped
from mim.run import train

Summary = dict[str, Any]
VISIBLE = "CUDA_VISIBLE_DEVICES"
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    name: str
    folder: Path
    config: Callable[[], str]  # makes its text when the run starts, since it may need a run before it


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a run ended: with a summary, or with the reason why there is none."""

    job: Job
    summary: Summary | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _RunningJob:
    job: Job
    rest: Sequence[Job]
    process: BaseProcess
    connection: Connection
    slot: int


def run_chains(chains: Sequence[Sequence[Job]], jobs: int, on_result: Callable[[JobResult], None]) -> None:
    """Runs every chain in its order, `jobs` chains at a time.

    `on_result` gets the result of each run, and of each that did not start because an earlier one in its chain failed.
    Jobs share the CPU cores, and are spread over the GPUs where there are several.
    """
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(["mim.run"])
    waiting = deque(tuple(chain) for chain in chains if chain)
    free = deque(range(jobs))
    running: list[_RunningJob] = []
    try:
        while waiting or running:
            while waiting and free:
                job, *rest = waiting.popleft()
                running.append(_start(context, job, rest, free.popleft(), jobs))
            ready = wait([each.connection for each in running])
            for done in [each for each in running if each.connection in ready]:
                running.remove(done)
                free.appendleft(done.slot)
                result = _result(done)
                on_result(result)
                if result.summary is None:
                    for job in done.rest:
                        on_result(JobResult(job, None, f"{done.job.name} failed before it"))
                elif done.rest:
                    waiting.appendleft(tuple(done.rest))
    finally:
        for each in running:
            each.process.terminate()
            each.process.join()


def _start(context: Any, job: Job, rest: Sequence[Job], slot: int, jobs: int) -> _RunningJob:
    ours, theirs = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // jobs)
    gpus = visible_gpus(torch.cuda.device_count(), os.environ.get(VISIBLE, ""))
    gpu = gpus[slot % len(gpus)] if jobs > 1 and len(gpus) > 1 else None
    process = context.Process(target=_work, args=(theirs, job.config(), str(job.folder), threads, gpu))
    process.start()
    theirs.close()
    return _RunningJob(job, rest, process, ours, slot)


def _result(done: _RunningJob) -> JobResult:
    try:
        summary, reason = done.connection.recv()
    except EOFError:  # the process died and sent nothing
        summary, reason = None, ""
    done.process.join()
    done.connection.close()
    if summary is None and not reason:
        reason = f"its process ended with code {done.process.exitcode} (negative: killed by that signal)"
    return JobResult(done.job, summary, reason)


def visible_gpus(count: int, names: str) -> list[str]:
    """The name of each GPU that this process sees, as CUDA_VISIBLE_DEVICES of a run has it.

    Args:
        count: GPUs that PyTorch sees.
        names: CUDA_VISIBLE_DEVICES of this process, such as `2,3`; empty where all are visible.
    """
    return [name.strip() for name in names.split(",")][:count] if names else [str(gpu) for gpu in range(count)]


def _work(connection: Connection, text: str, folder: str, threads: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    torch.set_num_threads(threads)
    study = multiprocessing.parent_process()
    assert study is not None
    threading.Thread(target=_end_after, args=(study.sentinel,), daemon=True).start()
    try:
        connection.send((train(parse_config(text), output=Path(folder), quiet=True), ""))
    except KeyboardInterrupt:
        pass
    except (ValueError, RunStopped, DataLost) as error:
        connection.send((None, str(error)))
    except Exception as error:  # a fault of one run must not end the others
        connection.send((None, f"{type(error).__name__}: {error}; {RunFolder(Path(folder)).log}"))


def _end_after(sentinel: int) -> None:
    """Ends this process once that of the study is gone, however it was killed."""
    wait([sentinel])
    os._exit(ExitCode.STOPPED)
