"""Checkpoints in the background: in order, of the step they were asked for, and no error of a write is lost."""

import logging
import os
import threading
from pathlib import Path

import pytest
import torch

from mim.engine import checkpoint
from mim.engine.background_writer import BackgroundWriter
from mim.engine.distributed.world import World
from mim.engine.run_folder import RunFolder
from mim.engine.saver import Saver
from mim.engine.settings import CheckpointSettings
from mim.engine.trackers.metrics import Stopwatch

PATIENCE = 20  # seconds


def state(step: int, **values: object) -> dict:
    return {"step": step, "weight": torch.full((3,), float(step)), **values}


@pytest.fixture
def gate():
    """What a write waits for; opened at the end in any case."""
    event = threading.Event()
    yield event
    event.set()


def test_write_has_the_values_of_the_moment_it_was_asked_for(gate):
    writer, weight, written = BackgroundWriter(), torch.zeros(3), []

    def write(content: dict) -> None:
        assert gate.wait(PATIENCE)
        written.append(content["weight"].tolist())

    writer.add({"step": 1, "weight": weight}, write)
    weight.fill_(5.0)
    assert not written
    gate.set()
    writer.add({"step": 2, "weight": weight}, write)  # waits for the first
    assert written[0] == [0.0] * 3
    writer.close(None)
    assert written == [[0.0] * 3, [5.0] * 3]


def test_two_writes_of_one_step_share_a_copy_and_wait_for_nothing(gate):
    writer, contents = BackgroundWriter(), []

    def write(content: dict) -> None:
        assert gate.wait(PATIENCE)
        contents.append(content)

    writer.add(state(4, results={"a": 1}), write)
    writer.add(state(4, results={"a": 2}), write)  # would wait for the gate, if it waited
    gate.set()
    writer.close(None)
    assert [content["results"]["a"] for content in contents] == [1, 2]
    assert contents[0]["weight"] is contents[1]["weight"]


def _fail(content: dict) -> None:
    raise OSError(28, "No space left on device", f"step-{content['step']}.pt")


@pytest.mark.parametrize("how", ["check", "wait", "add", "close"])
def test_error_of_a_write_is_raised_once(how):
    writer = BackgroundWriter()
    writer.add(state(1), _fail)
    writer.settle()
    calls = {"check": writer.check, "wait": writer.wait, "close": lambda: writer.close(None)}
    calls["add"] = lambda: writer.add(state(2), _fail)
    with pytest.raises(OSError, match="No space left on device: 'step-1"):
        calls[how]()
    writer.close(None)


def test_error_of_a_write_beside_that_of_the_run_is_a_warning(caplog):
    writer = BackgroundWriter()
    writer.add(state(1), _fail)
    logging.getLogger("mim").addHandler(caplog.handler)
    writer.close(RuntimeError("the run ends"))
    logging.getLogger("mim").removeHandler(caplog.handler)
    assert "a checkpoint was not written: step-1.pt: No space left on device" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_process_is_forked_between_writes(gate):
    writer, written = BackgroundWriter(), []
    writer.add(state(1), lambda content: written.append(gate.wait(PATIENCE)))
    threading.Timer(0.2, gate.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if written else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.close(None)


# ---------------------------------------------------------------- the saver


def saver(folder: Path, content: dict, asynchronous: bool = True) -> Saver:
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True)
    settings = CheckpointSettings(asynchronous=asynchronous, keep=2)
    return Saver(run, settings, World(0, 1, torch.device("cpu")), Stopwatch(), lambda: content)


def test_saver_writes_the_files_that_it_writes_without(tmp_path):
    for name, asynchronous in (("with", True), ("without", False)):
        content = state(0)
        with saver(tmp_path / name, content, asynchronous) as each:
            for step in (1, 2, 3):
                content["step"] = step
                content["weight"].fill_(step)
                each.write(each.folder.best)
                each.save(step, wait=step == 2)
                if step == 2:
                    assert checkpoint.newest_intact(each.folder.checkpoints)[1]["step"] == 2
    files = [sorted((tmp_path / name / "checkpoints").iterdir()) for name in ("with", "without")]
    assert [path.name for path in files[0]] == ["best.pt", "last", "step-2.pt", "step-3.pt"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_saver_tells_of_a_write_that_failed_at_the_next_step(tmp_path):
    with saver(tmp_path, state(1)) as each:
        each.folder.checkpoints.rmdir()
        each.save(1)
        assert each._background is not None
        each._background.settle()
        with pytest.raises(OSError, match="checkpoints"):
            each.is_due()


def test_saver_tells_of_a_write_that_failed_at_its_end(tmp_path):
    each = saver(tmp_path, state(1))
    each.folder.checkpoints.rmdir()
    each.save(1)
    with pytest.raises(OSError, match="checkpoints"):
        each.__exit__(None, None, None)
