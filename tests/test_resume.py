"""A run killed with SIGKILL in mid-epoch and resumed ends, bit for bit, where the undisturbed run ends."""

import signal
import time

import pytest
import torch
from processes import (
    FINETUNE,
    PROBE,
    RECIPE,
    TINY,
    TINY_CLASSIFIER,
    call,
    command,
    last_state,
    losses,
    rows,
    start,
    summary,
)

# drop path, EMA and accumulation are on: each would show a generator or a state that is not restored
KEYS = TINY | {"TRAIN.epochs": 3, "TRAIN.batch": 64, "TRAIN.ema": 0.9, "ENCODER.drop_path": 0.2}
CLASSIFYING = TINY_CLASSIFIER | {"LABELS.per_class": 16, "TRAIN.epochs": 4, "DATA.batch_size": 8, "TRAIN.ema": 0.9}
DRAWING = {  # all that draws in fine-tuning
    "ENCODER.drop_path": 0.3,
    "AUGMENT.mixup": 0.8,
    "AUGMENT.cutmix": 1,
    "AUGMENT.erase": 0.5,
    "AUGMENT.randaugment": "rand-m9-mstd0.5-inc1",
    "AUGMENT.jitter": 0.4,
}
PARTS = ("step", "model", "ema", "optimizer", "scaler", "meter")


def _kill_at(output, keys: dict, line: int, recipe=RECIPE) -> None:
    """Kills a run with SIGKILL once its metrics have that many lines."""
    process = start(command(output, keys, recipe))
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
    for part in PARTS:
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


@pytest.fixture
def one_thread():
    """This process computes with one thread, as those that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("recipe", "more"), [(FINETUNE, DRAWING), (PROBE, {"TRAIN.epochs": 8})], ids=["finetune", "probe"]
)
def test_killed_classifier_ends_where_the_undisturbed_one_ends(tmp_path, one_thread, recipe, more):
    """Weights, momenta, batch statistics, figures and best checkpoint, to the bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, text = call(whole, CLASSIFYING | more, recipe)
    assert code == 0, text
    keys = CLASSIFYING | more | {"CHECKPOINT.every_minutes": 0.0005}  # checkpoints in mid-epoch, too
    line = 16
    _kill_at(killed, keys, line, recipe)
    while last_state(killed)["step"] % 10 == 0:  # by chance the end of an epoch, which proves less
        line += 13
        _kill_at(killed, keys, line, recipe)
    code, text = call(killed, keys, recipe)
    assert code == 0, text
    assert "resumed from" in text

    for kind in (last_state, lambda output: torch.load(output / "checkpoints" / "best.pt", weights_only=True)):
        undisturbed, resumed = kind(whole), kind(killed)
        for part in (*PARTS, "results"):
            _equal(undisturbed[part], resumed[part], part)
    for figure in ("val/top1", "best/top1", "best/epoch", "val/by_class"):
        assert summary(killed)[figure] == summary(whole)[figure]
    timeless = [
        [
            {name: row[name] for name in row if name != "seconds" and not name.startswith("time/")}
            for row in rows(output)
        ]
        for output in (whole, killed)
    ]
    assert timeless[0] == timeless[1]
    assert (killed / "labelled.txt").read_text() == (whole / "labelled.txt").read_text()


def test_resumed_classifier_forgets_no_better_epoch(tmp_path):
    """Under a rate that only grows, what comes after the resume is worse, and leaves best.pt alone."""
    keys = TINY_CLASSIFIER | {"TRAIN.epochs": 6, "SCHEDULE.warmup_epochs": 6, "OPTIMIZER.base_lr": 3}
    assert call(tmp_path, keys, FINETUNE)[0] == 0
    best = tmp_path / "checkpoints" / "best.pt"
    before, found = torch.load(best, weights_only=True), summary(tmp_path)
    assert before["step"] < 30
    (tmp_path / "summary.json").unlink()
    state = last_state(tmp_path)
    assert state["results"]["best/top1"] == found["best/top1"] > found["val/top1"]
    assert call(tmp_path, keys, FINETUNE, ("--resume",))[0] == 0
    _equal(before, torch.load(best, weights_only=True))
    assert summary(tmp_path)["best/epoch"] == found["best/epoch"]
