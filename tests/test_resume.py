"""A run killed with SIGKILL in mid-epoch and resumed ends, bit for bit, where the undisturbed run ends."""

import signal
import time

import pytest
import torch
from processes import TINY, call, command, last_state, losses, start

# drop path, EMA and accumulation are on: each would show a generator or a state that is not restored
KEYS = TINY | {"TRAIN.epochs": 3, "TRAIN.batch": 64, "TRAIN.ema": 0.9, "ENCODER.drop_path": 0.2}


def _kill_at(output, keys: dict, line: int) -> None:
    """Kills a run with SIGKILL once its metrics have that many lines."""
    process = start(command(output, keys))
    deadline = time.monotonic() + 120
    metrics = output / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < line:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _equal(ours, theirs, name: str = "") -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            _equal(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), name
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            _equal(a, b, f"{name}[{place}]")
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run, in a process with one thread as the others have."""
    output = tmp_path_factory.mktemp("whole")
    process = start(command(output, KEYS))
    text = process.communicate(timeout=180)[0]
    assert process.returncode == 0, text
    return output


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_with_the_weights_of_the_undisturbed_run(tmp_path, whole, workers):
    keys = KEYS | {"DATA.workers": workers, "CHECKPOINT.every_minutes": 0.0005}  # checkpoints in mid-epoch, too
    for line in (9, 40):
        _kill_at(tmp_path, keys, line)
    assert last_state(tmp_path)["step"] % 22 != 0
    process = start(command(tmp_path, keys))
    text = process.communicate(timeout=180)[0]
    assert process.returncode == 0, text
    assert "resumed from" in text
    assert (tmp_path / "log.txt").read_text().count("resumed from") == 2

    undisturbed, resumed = last_state(whole), last_state(tmp_path)
    for part in ("step", "model", "ema", "optimizer", "scaler", "meter"):
        _equal(undisturbed[part], resumed[part], part)
    assert losses(tmp_path) == losses(whole)


def test_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    keys = TINY | {"CHECKPOINT.every_epochs": 0}
    _kill_at(tmp_path, keys, 5)
    assert not (tmp_path / "checkpoints" / "last").exists()
    code, text = call(tmp_path, keys)
    assert code == 0, text
    assert "resumed" not in text
    assert len(losses(tmp_path)) == 44
