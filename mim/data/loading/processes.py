"""Loader processes: what a function makes of each task, in order, made by several processes side by side.

Each process has a pipe of its own and nothing is shared between them, so that one which is killed at any moment blocks
no other; its death is noticed where its result is waited for, never elsewhere. Its tasks go to a new process. Differs
from: PyTorch's DataLoader, whose signal handler raises the death of a worker anywhere in the main process.
"""

import ctypes
import os
import pickle
import queue
import random
import shutil
import signal
import tempfile
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.multiprocessing as multiprocessing  # teaches pipes to hand over tensors in shared memory
from torch.utils.data._utils import worker as torch_worker

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2  # tasks that a process has in hand
DEATHS = 3  # in a row, without a result in between, after which no more processes are started
LONGEST = 55  # bytes in the path of the system's temporary folder; a socket's has 45 more, and systems take some 100
SHORT = "/tmp"  # noqa: S108 - where that one's is longer; what is made there is a folder of this user alone
WATCH_S = 5  # between looks at whether the parent still lives, where the system does not tell
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HINTS = {
    signal.SIGKILL: "often the system's answer to too little memory: lower DATA.workers or DATA.batch_size",
    signal.SIGBUS: "too little shared memory (/dev/shm; docker run --shm-size), or a file mapped into memory that was "
    "cut short or whose disk failed",
    signal.SIGSEGV: "a fault in a decoder or another library",
}


class Dead(RuntimeError):
    """Processes died again and again on the same task. Its text says how; task is what they died on."""

    def __init__(self, text: str, task: Any):
        super().__init__(text)
        self.task = task


class _Remote(Exception):
    """The traceback of an error in another process, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True, slots=True)
class _Made(Generic[Result]):
    """An answer of a process: what it made."""

    result: Result


@dataclass(frozen=True, slots=True)
class _Error:
    """An answer of a process: what went wrong, and where."""

    error: Exception
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> "_Error":
        """With a RuntimeError of the same text in place of a type that cannot be sent."""
        text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written a moment ago
        except Exception:  # whatever a type of the user's trips over
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, text)


@dataclass(slots=True)
class _Worker(Generic[Task]):
    """A process, the pipe to it, and the tasks it has in hand, the first one due next.

    held: whether it was told of that first one only.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    pending: deque[Task] = field(default_factory=deque)
    held: bool = False

    def give(self, task: Task) -> None:
        """One more task."""
        self.pending.append(task)
        self.send(task)

    def send(self, task: Task) -> None:
        """A task that is in hand already."""
        with suppress(OSError):  # of a dead one, which is noticed where its result is waited for
            self.pipe.send(task)


class Processes(Iterator[Result], Generic[Task, Result]):
    """make(task) for each task, in order. An error of `make` is raised here, with its own type and text.

    died: called with a line for each process that died and was replaced; it may raise. Raises Dead after three deaths
    in a row. What is still at work when this ends or is dropped is killed: nothing is lost by it.
    """

    def __init__(
        self, make: Callable[[Task], Result], tasks: Iterable[Task], workers: int, died: Callable[[str], None]
    ):
        self._make, self._tasks, self._died = make, iter(tasks), died
        self._workers: list[_Worker[Task]] = []
        self._folder = _folder_of_sockets()
        ending = (os.getpid(), self._workers, self._folder)
        self._close = weakref.finalize(self, _end, *ending)  # at exit, too, before Python waits
        self._done = self._deaths = 0
        for number in range(workers):
            self._workers.append(_Worker(number, *self._started(number, workers)))
        for worker in self._workers * AHEAD:
            self._give(worker)

    def __next__(self) -> Result:
        while self._close.alive:
            worker = self._workers[self._done % len(self._workers)]
            if not worker.pending:
                self.close()
                break
            answer = self._answer(worker)
            if answer is None:
                self._replace(worker)
                continue
            worker.pending.popleft()
            if worker.held:
                worker.held = False
                for task in worker.pending:
                    worker.send(task)
            self._done, self._deaths = self._done + 1, 0
            self._give(worker)
            if isinstance(answer, _Error):
                self.close()
                raise answer.error from _Remote(answer.traceback)
            return answer.result
        raise StopIteration

    def ready(self) -> bool:
        """Whether the next result, or a death, is there already."""
        worker = self._workers[self._done % len(self._workers)]
        return self._close.alive and bool(worker.pending) and worker.pipe.poll()

    def close(self) -> None:
        """Ends the processes at once."""
        self._close()

    def _started(self, number: int, workers: int) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context()
        pipe, theirs = context.Pipe()
        firm = threading.current_thread() is threading.main_thread()  # other threads may end before this process does
        parent = os.getpid() if context.get_start_method() != "forkserver" else 0
        told = (self._make, theirs, number, workers, parent, firm, self._folder)
        process = context.Process(target=_serve, args=told, name=f"loader-{number}", daemon=True)
        process.start()
        theirs.close()  # so that its end is noticed: no one else holds it
        return process, pipe

    def _give(self, worker: _Worker[Task]) -> None:
        for task in self._tasks:
            worker.give(task)
            return

    def _answer(self, worker: _Worker[Task]) -> "_Made[Result] | _Error | None":
        """Waits for it; None where the process died."""
        wait([worker.pipe, worker.process.sentinel])
        try:
            if worker.pipe.poll():
                return worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # or it died between sending and handing over the memory
            worker.process.join(1)
            if worker.process.exitcode is None:
                raise
        return None

    def _replace(self, worker: _Worker[Task]) -> None:
        """Tells of a death, and starts another process on the same tasks."""
        worker.process.join(1)
        worker.pipe.close()
        how = _how(worker.process)
        self._deaths += 1
        if self._deaths >= DEATHS:
            self.close()
            text = f"{self._deaths} loader processes in a row died without a result, the last one {how}"
            raise Dead(text, worker.pending[0])
        try:
            self._died(f"a loader process ({worker.process.pid}, number {worker.number} of {len(self._workers)}) {how}")
        except BaseException:
            self.close()
            raise
        worker.process, worker.pipe = self._started(worker.number, len(self._workers))
        worker.send(worker.pending[0])  # alone: who dies on a later one takes a result along that was not fetched yet
        worker.held = True


def _end(owner: int, workers: list[_Worker[Any]], folder: str) -> None:
    if os.getpid() != owner:  # a copy of these objects in another process
        return
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
    for worker in workers:
        worker.process.join(WATCH_S)  # one that waits for a disk may take long to die
        worker.pipe.close()
    shutil.rmtree(folder, ignore_errors=True)


def _folder_of_sockets() -> str:
    """A new folder for the sockets over which processes hand over tensors; one that is killed cannot remove its own."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="mim-", dir=usual if len(os.fsencode(usual)) <= LONGEST else SHORT)


def _how(process: BaseProcess) -> str:
    """How it ended."""
    code = process.exitcode
    if code is None or code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    return f"was ended by {number.name}" + (f" ({HINTS[number]})" if number in HINTS else "")


# ------------------------------------------------------------------ in the process


def _serve(
    make: Callable[[Any], Any], pipe: Connection, number: int, workers: int, parent: int, firm: bool, folder: str
) -> None:
    """Makes what is asked for until the parent ends.

    parent: its id, 0 where that is a server, which ends with it; firm: whether the thread that asks lives as long;
    folder: for temporary files, which the parent removes.
    """
    parent = parent or os.getppid()
    for ignored in IGNORED:  # which are sent to every process of a step, and are for the main one to answer
        signal.signal(ignored, signal.SIG_IGN)
    if firm:
        _die_with(parent)
    tempfile.tempdir = folder
    torch.set_num_threads(1)
    random.seed(number)  # copies of one process would else draw alike
    np.random.seed(number)
    torch.manual_seed(number)
    info = torch_worker.WorkerInfo(id=number, num_workers=workers, seed=number, dataset=make)  # type: ignore[arg-type]
    torch_worker._worker_info = info  # of get_worker_info: collating then stacks into shared memory
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, tasks, parent), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            pipe.send(_Made(make(task)))  # which is whole before its first byte is sent
        except Exception as error:  # the parent's to judge
            pipe.send(_Error.of(error))


def _receive(pipe: Connection, tasks: "queue.SimpleQueue[Any]", parent: int) -> None:
    """Takes tasks as they come, so that the parent never waits to hand one over, and watches whether it lives."""
    try:
        while True:
            if pipe.poll(WATCH_S):
                tasks.put(pipe.recv())
            elif os.getppid() != parent:
                break
    except (EOFError, OSError):
        pass
    finally:  # also of what else may go wrong here: without this thread the process would wait for ever
        os._exit(1)


def _die_with(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies, however that dies; elsewhere _receive sees to it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
