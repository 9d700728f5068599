"""Results of dataloader workers: in order, with a clear error where one dies, and nothing left behind at the end."""

import faulthandler
import logging
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
from small_data import logged

from mim.data.loading.loader import AHEAD, Keys, Results
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.errors import DataLost

ROOT = Path(__file__).parents[3]


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(numbers: list[int], seconds: float = 20) -> bool:
    """Whether these processes end in that time."""
    until = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def tasks(count: int) -> list[Keys]:
    return [[(0, number)] for number in range(count)]


def results(task, order, workers: int) -> Results:
    return Results(task, order, workers, Digits("val", DataSettings(channels=1)), pin_memory=False)


def who(keys: Keys) -> tuple[int, int]:
    return keys[0][1], os.getpid()


def tensor(keys: Keys) -> torch.Tensor:
    return torch.full((1000, 100), keys[0][1])


def hangs(keys: Keys) -> int:
    time.sleep(3600 if keys[0][1] > 1 else 0)
    return os.getpid()


class Dies:
    """Ends the process that gets sample 6 of the data set."""

    def __init__(self, end: int | None):
        self.end = end

    def __call__(self, keys: Keys) -> torch.Tensor:
        if keys[0][1] == 6:
            faulthandler.disable()  # of pytest
            if self.end is None:
                os._exit(7)
            os.kill(os.getpid(), self.end)
        return tensor(keys)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_from_as_many_processes(workers: int) -> None:
    pairs = list(results(who, tasks(23), workers))
    assert [number for number, _ in pairs] == list(range(23))
    processes = {process for _, process in pairs}
    assert len(processes) == workers
    assert os.getpid() not in processes
    assert ended(list(processes), 0)  # at the end of the tasks


@pytest.mark.parametrize("workers", [0, 2])
def test_results_without_a_task_end_at_once(workers: int) -> None:
    assert list(results(who, [], workers)) == []


def test_results_are_made_two_ahead_for_each_worker_and_no_further() -> None:
    requests = []

    def order() -> Iterator[Keys]:
        for keys in tasks(100):
            requests.append(keys)
            yield keys

    stream = results(who, order(), 2)
    assert len(requests) == 2 * AHEAD
    next(stream)
    assert len(requests) == 2 * AHEAD + 1
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        pytest.param(signal.SIGKILL, "was ended by SIGKILL .*memory", marks=pytest.mark.slow),
        pytest.param(signal.SIGBUS, "was ended by SIGBUS .*shared memory", marks=pytest.mark.slow),
        pytest.param(None, "ended by itself with exit code 7", marks=pytest.mark.slow),
    ],
)
def test_results_name_the_cause_and_the_samples_of_a_dead_worker(end: int | None, cause: str) -> None:
    stream = results(Dies(end), tasks(12), 2)
    processes = [process.pid for process in stream._processes]
    values: list[torch.Tensor] = []
    with pytest.raises(DataLost, match=rf"^dataloader worker 0 \(process {processes[0]}\) {cause}") as caught:
        values.extend(stream)
    assert all((value == number).all() for number, value in enumerate(values))
    # results that were made but not sent die with their worker; it had at most two batches
    assert len(values) <= 6
    images = list(map(int, re.findall(r"digits val image (\d+)", str(caught.value))))
    first = len(values) + len(values) % 2  # worker 0 reads the even samples
    assert images == list(range(first, 10, 2))[: len(images)]
    assert 6 in images
    assert "same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ended(processes, 0)
    assert list(stream) == []


@pytest.mark.slow
def test_death_of_a_worker_raises_nothing_outside_of_the_next_result() -> None:
    """PyTorch's own handler would raise an error wherever the main thread is, as in a forward pass."""
    before = signal.getsignal(signal.SIGCHLD)
    stream = results(tensor, tasks(8), 2)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before
    victim = stream._processes[1].pid
    os.kill(victim, signal.SIGKILL)
    model, inputs = torch.nn.Linear(300, 300), torch.rand(300, 300)
    until = time.monotonic() + 0.5
    while alive(victim) or time.monotonic() < until:
        model(inputs).sum().backward()
    with pytest.raises(DataLost, match=rf"worker 1 \(process {victim}\) was ended by SIGKILL"):
        list(stream)


class Bug(Exception):
    """An error that cannot be made again from what pickle keeps of it."""

    def __init__(self, a: int, b: int):
        super().__init__(f"{a} and {b}")


def raises(keys: Keys) -> int:
    if keys[0][1] == 3:
        raise ValueError("a size that does not fit")
    if keys[0][1] == 4:
        raise Bug(1, 2)
    return keys[0][1]


def test_results_raise_an_error_with_its_own_type_and_text_and_note_its_traceback() -> None:
    stream = results(raises, tasks(9), 2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is below
        next(stream)
    assert str(caught.value) == "a size that does not fit"
    assert "in raises" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError) as other:
        next(results(raises, tasks(5)[4:], 1))
    assert str(other.value) == "Bug: 1 and 2"
    with pytest.raises(Bug):
        next(results(raises, tasks(5)[4:], 0))


def warns(keys: Keys) -> int:
    logging.getLogger("mim").warning("sample %d", keys[0][1])
    return keys[0][1]


def test_warnings_of_workers_reach_the_log_of_this_process_once() -> None:
    with logged() as messages:
        assert list(results(warns, tasks(7), 3)) == list(range(7))
    assert messages == [f"sample {number}" for number in range(7)]


def test_workers_ignore_the_signals_that_every_process_of_a_step_gets() -> None:
    stream = results(who, tasks(12), 2)
    numbers = [next(stream)[1], next(stream)[1]]
    for number in numbers:
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
            os.kill(number, getattr(signal, name))
    assert [process for _, process in stream] == numbers * 5


def test_workers_compute_on_one_thread_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    assert set(results(lambda keys: torch.get_num_threads(), tasks(4), 2)) == {1}
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_at_work_end_soon_when_their_results_are_dropped() -> None:
    stream = results(hangs, tasks(9), 2)
    next(stream)
    numbers = [process.pid for process in stream._processes]
    assert all(map(alive, numbers))
    start = time.monotonic()
    del stream
    assert ended(numbers, 0)
    assert time.monotonic() - start < 6


@pytest.mark.slow
def test_workers_leave_no_file_behind_however_they_end(temporary: Path) -> None:
    """The sockets over which they hand over tensors."""

    def sockets() -> int:
        return sum(path.is_socket() for path in temporary.rglob("*"))

    dies = results(Dies(signal.SIGKILL), tasks(12), 2)
    next(dies)
    assert sockets() > 0
    dropped = results(tensor, tasks(12), 2)
    next(dropped)
    with pytest.raises(DataLost):
        list(dies)
    assert sockets() > 0  # those of the others stay
    dropped.close()
    assert not list(temporary.iterdir())


def test_workers_work_where_the_temporary_folder_has_a_path_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    stream = results(tensor, tasks(5), 2)
    folder = Path(stream._folder.name)
    assert len(list(stream)) == 5
    assert not folder.exists()


PARENT = """
    import os, sys, time
    sys.path[:0] = ["tests/data/loading", "tests/support"]
    from test_workers import hangs, results, tasks

    first = os.fork()  # one parent that ends by itself, then one that waits to be killed
    made = results(hangs, tasks(9), 2)
    if first:
        print(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), flush=True)
    print(next(made), next(made), flush=True)
    if first:
        next(made)
"""


@pytest.mark.slow
def test_workers_at_work_end_with_their_parent_however_that_ends() -> None:
    words = [sys.executable, "-c", textwrap.dedent(PARENT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        numbers = [int(word) for word in re.findall(r"\d+", parent.stdout.readline())]
        assert len(numbers) == 2
        assert parent.stdout.readline() == "0\n"
        assert ended(numbers, 2)
        killed = [int(word) for word in parent.stdout.readline().split()]
        assert len(killed) == 2
        assert all(map(alive, killed))
        parent.kill()
        assert parent.wait(30) == -signal.SIGKILL
    assert ended(killed, 2)
