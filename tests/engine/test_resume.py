"""A run killed with SIGKILL in mid-epoch and resumed ends, bit for bit, where the undisturbed run ends."""

import math
import shutil
import signal
import time

import pytest
import torch
from processes import (
    FINETUNE,
    PARTS,
    PROBE,
    RECIPE,
    TINY,
    TINY_CLASSIFIER,
    arguments,
    call,
    last_state,
    losses,
    rows,
    same,
    summary,
    timeless_rows,
)

# drop path, EMA and accumulation are on: each would show a generator or a state that is not restored
KEYS = TINY | {"TRAIN.epochs": 2, "TRAIN.ema": 0.9, "ENCODER.drop_path": 0.2, "OPTIMIZER.weight_decay_end": 0.4}
KEYS |= {"TRAIN.batch": 64, "DATA.batch_size": 32}  # 22 steps an epoch, 2 micro-batches a step
CLASSIFYING = TINY_CLASSIFIER | {"LABELS.per_class": 16, "TRAIN.epochs": 4, "DATA.batch_size": 8, "TRAIN.ema": 0.9}
DRAWING = {  # all that draws in fine-tuning
    "ENCODER.drop_path": 0.3,
    "AUGMENT.mixup": 0.8,
    "AUGMENT.cutmix": 1,
    "AUGMENT.erase": 0.5,
    "AUGMENT.randaugment": "rand-m9-mstd0.5-inc1",
    "AUGMENT.jitter": 0.4,
}


def _kill_at(warm, output, keys: dict, line: int, recipe=RECIPE, flags: tuple[str, ...] = ()) -> None:
    """Kills a run with SIGKILL once its metrics have that many lines."""
    process = warm.start([*flags, *arguments(output, keys, recipe)], output.parent / "killed.log")
    deadline = time.monotonic() + 120
    metrics = output / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < line:
        assert process.code is None, process.text
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, warm):
    """The undisturbed run, in a process with one thread as the others have."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    code, text = warm.run(1, output, KEYS)
    assert code == 0, text
    return output


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_with_the_weights_of_the_undisturbed_run(tmp_path, warm, undisturbed, workers):
    """Killed twice. Among the fast tests, tests/engine/test_targets_in_runs.py resumes what ended in this process."""
    output = tmp_path / "run"
    keys = KEYS | {"DATA.workers": workers, "CHECKPOINT.every_minutes": 0.0005}  # checkpoints in mid-epoch, too
    for line in (9, 30):
        _kill_at(warm, output, keys, line)
    assert last_state(output)["step"] % 22 != 0
    code, text = warm.run(1, output, keys)
    assert code == 0, text
    assert "resumed from" in text
    assert (output / "log.txt").read_text().count("resumed from") == 2

    reference, resumed = last_state(undisturbed), last_state(output)
    for part in PARTS:
        same(reference[part], resumed[part], part)
    assert losses(output) == losses(undisturbed)


@pytest.mark.slow
def test_weight_decay_of_each_step_goes_to_its_end_by_half_a_cosine(undisturbed):
    """The resumed run, which ends with the same weights, takes it from the step."""
    decays = {row["step"]: row["train/weight_decay"] for row in rows(undisturbed) if "train/weight_decay" in row}
    steps = [step - 1 for step in decays]  # before the step of the row
    assert len(steps) > 20
    expected = [0.4 + (0.05 - 0.4) * (1 + math.cos(math.pi * step / 44)) / 2 for step in steps]
    assert list(decays.values()) == pytest.approx(expected, rel=1e-12)
    groups = last_state(undisturbed)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, decays[44]}
    assert "weight decay" in (undisturbed / "log.txt").read_text()


@pytest.mark.slow
def test_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, warm):
    output, keys = tmp_path / "run", TINY | {"TRAIN.epochs": 3, "CHECKPOINT.every_epochs": 0}
    _kill_at(warm, output, keys, 5)
    assert not (output / "checkpoints" / "last").exists()
    code, text = call(output, keys)
    assert code == 0, text
    assert "resumed" not in text
    assert len(losses(output)) == 42


@pytest.fixture
def one_thread():
    """This process computes with one thread, as those that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "more"),
    [(FINETUNE, DRAWING), (PROBE, {"TRAIN.epochs": 8})],
    ids=["finetune", "probe"],
)
def test_killed_classifier_ends_where_the_undisturbed_one_ends(tmp_path, warm, one_thread, recipe, more):
    """Weights, momenta, batch statistics, figures and best checkpoint, to the bit."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    code, text = call(undisturbed, CLASSIFYING | more, recipe)
    assert code == 0, text
    keys = CLASSIFYING | more | {"CHECKPOINT.every_minutes": 0.0005}  # checkpoints in mid-epoch, too
    line = 16
    _kill_at(warm, killed, keys, line, recipe)
    while last_state(killed)["step"] % 10 == 0:  # by chance the end of an epoch, which proves less
        line += 13
        _kill_at(warm, killed, keys, line, recipe)
    code, text = call(killed, keys, recipe)
    assert code == 0, text
    assert "resumed from" in text

    for kind in (last_state, lambda output: torch.load(output / "checkpoints" / "best.pt", weights_only=True)):
        reference, resumed = kind(undisturbed), kind(killed)
        for part in (*PARTS, "results"):
            same(reference[part], resumed[part], part)
    for figure in ("val/top1", "best/top1", "best/epoch", "val/by_class"):
        assert summary(killed)[figure] == summary(undisturbed)[figure]
    assert timeless_rows(undisturbed) == timeless_rows(killed)
    assert (killed / "labelled.txt").read_text() == (undisturbed / "labelled.txt").read_text()


@pytest.mark.slow
def test_resumed_classifier_forgets_no_better_epoch(tmp_path):
    """Under a rate that only grows, what comes after the resume is worse, and leaves best.pt alone."""
    keys = TINY_CLASSIFIER | {"TRAIN.epochs": 6, "SCHEDULE.warmup_epochs": 6, "OPTIMIZER.base_lr": 3}
    assert call(tmp_path, keys, FINETUNE)[0] == 0
    best = tmp_path / "checkpoints" / "best.pt"
    before, metrics = torch.load(best, weights_only=True), summary(tmp_path)
    assert before["step"] < 30
    (tmp_path / "summary.json").unlink()
    state = last_state(tmp_path)
    assert state["results"]["best/top1"] == metrics["best/top1"] > metrics["val/top1"]
    assert call(tmp_path, keys, FINETUNE, ("--resume",))[0] == 0
    same(before, torch.load(best, weights_only=True))
    assert summary(tmp_path)["best/epoch"] == metrics["best/epoch"]


@pytest.mark.slow
def test_extension_that_was_killed_ends_where_the_undisturbed_one_ends(tmp_path, warm, undisturbed):
    """With SIGKILL, twice; then by the command that knows of no extension."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        shutil.copytree(undisturbed, folder)
    words = ("--extend", "3")
    process = warm.start([*words, *arguments(folders[0], KEYS, RECIPE)], tmp_path / "whole.log")
    assert process.wait() == 0, process.text
    keys = KEYS | {"CHECKPOINT.every_minutes": 0.0005}
    for line in (48, 56):
        _kill_at(warm, folders[1], keys, line, flags=words)
    assert 44 < last_state(folders[1])["step"] < 66
    code, text = warm.run(1, folders[1], KEYS)
    assert code == 0, text
    whole, killed = (last_state(folder) for folder in folders)
    for part in PARTS:
        same(whole[part], killed[part], part)
    assert losses(folders[0]) == losses(folders[1])
    assert len(losses(folders[0])) == 66
