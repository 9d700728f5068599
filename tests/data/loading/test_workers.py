"""Loader processes: in order, replaced where they die, deaf to the signals of a step, gone with their parent."""

import faulthandler
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mim.data.loading.processes import DEATHS, Dead, Processes

ROOT = Path(__file__).parents[3]


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(numbers: list[int], seconds: float = 20) -> bool:
    """Whether they end in that time."""
    until = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def who(task: int) -> tuple[int, int]:
    return task, os.getpid()


class Once:
    """Does something in the process that gets one task, the first time only."""

    def __init__(self, folder: Path, task: int, end: int | None):
        self.flag, self.task, self.end = folder / "done", task, end

    def __call__(self, task: int) -> tuple[int, torch.Tensor]:
        if task == self.task and not self.flag.exists():
            self.flag.touch()
            faulthandler.disable()  # of pytest
            if self.end is None:
                os._exit(7)
            os.kill(os.getpid(), self.end)
        return task, torch.full((1000, 100), task)


def always_dies(task: int) -> int:
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def refuse(line: str) -> None:
    pytest.fail(f"unexpected: {line}")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_processes_give_results_in_order_from_as_many_processes(workers: int) -> None:
    found = list(Processes(who, range(23), workers, refuse))
    assert [task for task, _ in found] == list(range(23))
    assert len({process for _, process in found}) == workers
    assert os.getpid() not in {process for _, process in found}
    assert gone([process for _, process in found], 0)  # at the end of their tasks


def test_processes_without_a_task_end_at_once() -> None:
    assert list(Processes(who, [], 2, refuse)) == []


def test_processes_take_tasks_two_ahead_and_no_further() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for task in range(100):
            taken.append(task)
            yield task

    found = Processes(who, tasks(), 2, refuse)
    assert len(taken) == 4
    next(found)
    assert len(taken) == 5
    found.close()
    assert list(found) == []


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (signal.SIGKILL, "was ended by SIGKILL .*memory"),
        (signal.SIGBUS, "was ended by SIGBUS .*shared memory"),
        (None, "ended by itself with exit code 7"),
    ],
)
def test_processes_dead_one_is_replaced_and_no_result_is_lost(tmp_path: Path, end: int | None, words: str) -> None:
    lines: list[str] = []
    found = list(Processes(Once(tmp_path, 6, end), range(12), 2, lines.append))
    assert [task for task, _ in found] == list(range(12))
    assert all((values == task).all() for task, values in found)
    (line,) = lines
    assert re.search(rf"a loader process \(\d+, number 0 of 2\) {words}", line)


def test_processes_killed_again_and_again_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    found = Processes(Once(tmp_path, -1, 9), range(60), 3, lines.append)
    generator = torch.Generator().manual_seed(0)
    for number, (task, values) in enumerate(found):
        assert task == number
        assert (values == task).all()
        if task % 4 == 0 and task < 56:
            victim = found._workers[int(torch.randint(3, (), generator=generator))].process
            time.sleep(float(torch.rand((), generator=generator)) * 0.02)
            os.kill(victim.pid, signal.SIGKILL)
    assert 8 <= len(lines) <= 14


def test_processes_that_die_on_one_task_again_and_again_are_given_up_with_that_task() -> None:
    lines: list[str] = []
    found = Processes(always_dies, range(20), 2, lines.append)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(Dead, match=rf"{DEATHS} loader processes in a row died .* SIGKILL") as caught:
        next(found)
    assert caught.value.task == 5
    assert len(lines) == DEATHS - 1
    assert gone([worker.process.pid for worker in found._workers], 0)


def test_processes_install_no_signal_handler_and_a_death_raises_nothing_elsewhere() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    lines: list[str] = []
    found = Processes(who, range(8), 2, lines.append)
    next(found)
    assert signal.getsignal(signal.SIGCHLD) == before
    victim = found._workers[1].process.pid
    os.kill(victim, signal.SIGKILL)
    assert gone([victim], 5)
    time.sleep(0.1)  # here a handler would raise
    assert lines == []
    assert [task for task, _ in found] == list(range(1, 8))
    assert len(lines) == 1


class Bug(Exception):
    """One that cannot be made again from what pickle keeps of it."""

    def __init__(self, a: int, b: int):
        super().__init__(f"{a} and {b}")


def raises(task: int) -> int:
    if task == 3:
        raise ValueError("a size that does not fit")
    if task == 4:
        raise Bug(1, 2)
    return task


def test_processes_error_comes_with_its_own_type_and_text_and_its_traceback_as_the_cause() -> None:
    found = Processes(raises, range(9), 2, refuse)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^a size that does not fit$") as caught:
        next(found)
    assert "in raises" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=r"^Bug: 1 and 2$"):
        next(Processes(raises, [4], 1, refuse))


def test_processes_ignore_the_signals_that_every_process_of_a_step_gets() -> None:
    found = Processes(who, range(12), 2, refuse)
    numbers = [next(found)[1], next(found)[1]]
    for number in numbers:
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
            os.kill(number, getattr(signal, name))
    assert [process for _, process in found] == numbers * 5


def hangs(task: int) -> int:
    time.sleep(3600 if task else 0)
    return task


def test_processes_at_work_end_at_once_when_they_are_dropped() -> None:
    found = Processes(hangs, range(9), 2, refuse)
    next(found)
    numbers = [worker.process.pid for worker in found._workers]
    assert all(map(alive, numbers))
    start = time.monotonic()
    del found
    assert gone(numbers, 0)
    assert time.monotonic() - start < 3


def test_processes_leave_no_file_behind_however_they_end(tmp_path: Path, temporary: Path) -> None:
    """Sockets, over which they hand tensors to this process: of one that is killed in between, too."""

    def sockets() -> int:
        return sum(path.is_socket() for path in temporary.rglob("*"))

    whole = Processes(Once(tmp_path, 3, signal.SIGKILL), range(12), 2, [].append)
    next(whole)
    assert sockets() > 0
    dropped = Processes(Once(tmp_path, -1, None), range(12), 2, refuse)
    next(dropped)
    assert len(list(whole)) == 11
    assert sockets() > 0  # those of the others stay
    dropped.close()
    assert not list(temporary.iterdir())


def test_processes_work_where_the_temporary_folder_has_a_path_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    found = Processes(Once(tmp_path, -1, None), range(5), 2, refuse)
    assert [task for task, _ in found] == list(range(5))
    assert not Path(found._folder).exists()


PARENT = """
    import os, sys, time
    from mim.data.loading.processes import Processes

    def hangs(task):
        time.sleep(3600 if task > 1 else 0)
        return os.getpid()

    first = os.fork()  # one parent that ends by itself, then one that waits to be killed
    found = Processes(hangs, range(9), 2, print)
    if first:
        print(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), flush=True)
    print(next(found), next(found), flush=True)
    if first:
        next(found)
"""


def test_processes_at_work_end_with_their_parent_however_that_ends() -> None:
    words = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        ended = [int(word) for word in parent.stdout.readline().split()]
        assert len(ended) == 2
        assert parent.stdout.readline() == "0\n"
        assert gone(ended, 2)
        killed = [int(word) for word in parent.stdout.readline().split()]
        assert len(killed) == 2
        assert all(map(alive, killed))
        parent.kill()
        assert parent.wait(30) == -signal.SIGKILL
    assert gone(killed, 2)
