"""Steps that are not finite: told, skipped up to a limit, agreed by all ranks; fp16 and its loss scale."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fragile_encoder import FRAGILE
from processes import TINY, call, last_checkpoint, last_state, losses, rows
from small_data import write_noise

from mim.engine import checkpoint
from mim.engine.step_status import OVERFLOWS, StepMonitor

ARRAYS = (
    TINY
    | FRAGILE
    | {
        **{"DATA.name": "folder", "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 16, "TRAIN.epochs": 2},
        **{"DATA.mean": "[0]", "DATA.std": "[1]", "AUGMENT.crop_scale": "[1,1]", "SCHEDULE.warmup_epochs": 0},
    }
)
FP16 = TINY | {"TRAIN.precision": "fp16", "CHECKPOINT.every_epochs": 1, "DATA.batch_size": 128, "TRAIN.batch": 128}
FP16 |= {"CHECKPOINT.keep": 9}


@pytest.fixture
def arrays(tmp_path) -> Path:
    """64 arrays, at one of which the encoder overflows."""
    return write_noise(tmp_path / "arrays")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_steps_that_are_not_finite_are_skipped_up_to_the_limit(tmp_path, warm, arrays, processes):
    """One in each epoch of four steps: two are allowed in two epochs, and the third is one too many."""
    output, keys = tmp_path / "run", ARRAYS | {"DATA.path": arrays, "TRAIN.max_skipped": 2}
    code, text = call(output, keys) if processes == 1 else warm.run(2, output, keys)
    assert code == 0, text
    for count in (1, 2):
        assert f"It changed no weight: skipped, {count} of TRAIN.max_skipped 2" in text
    saved = sorted(output.glob("nonfinite-step-*.json"))
    assert len(saved) == 2 * processes
    reports = [json.loads(path.read_text()) for path in saved]
    assert [Path(name).name for rank in reports for name in rank["files"]].count("037.npy") == 2
    bad = {rank["step"] for rank in reports}
    assert len(bad) == 2
    state = last_state(output)
    assert state["skipped"] == 2
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    row_of_step = {
        row["step"] - 1: row for row in rows(output) if "time/images_per_s" in row
    }  # a row is of one step here
    assert {step for step, row in row_of_step.items() if "train/loss" not in row} == bad
    json.loads((output / "metrics.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)  # no NaN in JSON

    code, text = call(tmp_path / "three", keys | {"TRAIN.epochs": 3})
    assert code == 3, text
    assert re.search(r"error: the (loss|gradient norm) is not finite at step \d+", text)
    assert "TRAIN.max_skipped, which is 2" in text


def test_skipped_steps_are_counted_over_a_resume(tmp_path, arrays):
    keys = ARRAYS | {"DATA.path": arrays, "TRAIN.max_skipped": 2, "TRAIN.epochs": 3}
    code, text = call(tmp_path / "run", keys)
    assert code == 3, text
    assert last_state(tmp_path / "run")["skipped"] == 2
    code, text = call(tmp_path / "run", keys | {"TRAIN.max_skipped": 1})  # may be changed; the third is again too many
    assert code == 3, text
    assert "TRAIN.max_skipped, which is 1" in text


def test_skipped_step_leaves_weights_and_moments_as_they_were(tmp_path, arrays):
    """The states before and after each step are saved and compared."""
    keys = ARRAYS | {"DATA.path": arrays, "TRAIN.max_skipped": 1, "TRAIN.epochs": 1, "CHECKPOINT.keep": 9}
    code, text = call(tmp_path / "run", keys | {"CHECKPOINT.every_minutes": 1e-9})
    assert code == 0, text
    (saved,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    bad = json.loads(saved.read_text())["step"]
    folder = tmp_path / "run" / "checkpoints"
    states = {step: checkpoint.load(folder / f"step-{step}.pt") for step in range(1, 5)}
    pairs = [(step, step + 1) for step in range(1, 4)]
    for before, after in pairs:
        equal = all(torch.equal(states[before]["model"][name], value) for name, value in states[after]["model"].items())
        moments = [states[step]["optimizer"]["state"] for step in (before, after)]
        equal_moments = all(
            torch.equal(moments[0][index]["exp_avg"], value["exp_avg"]) for index, value in moments[1].items()
        )
        assert equal == equal_moments == (before == bad)


@pytest.mark.slow
def test_fp16_overflow_lowers_the_loss_scale_and_the_run_goes_on(tmp_path):
    """A run of which the loss scale is by far too large, as after a long stretch of small gradients."""
    output, keys = tmp_path / "run", FP16 | {"TRAIN.epochs": 3}
    assert call(output, keys)[0] == 0
    assert last_state(output)["scaler"]["scale"] == 65536
    _back_to(output, step=11, scale=2.0**30)
    code, text = call(output, keys)
    assert code == 0, text
    assert not list(output.glob("nonfinite-*"))
    assert 2.0**8 <= last_state(output)["scaler"]["scale"] < 2.0**30
    assert losses(output)[-1] < losses(output)[0]
    norms = [row.get("train/gradient_norm") for row in rows(output) if row["step"] > 11 and "train/loss" in row]
    assert norms[0] is None  # an overflow
    assert norms[-1] is not None


@pytest.mark.slow
def test_fp16_overflow_that_does_not_end_stops_the_run(tmp_path):
    output, keys = tmp_path / "run", FP16 | {"TRAIN.epochs": 4}
    assert call(output, keys)[0] == 0
    _back_to(output, step=11, scale=2.0**100)
    code, text = call(output, keys)
    assert code == 3, text
    assert "the gradient norm is not finite" in text
    (saved,) = output.glob("nonfinite-step-*.json")
    report = json.loads(saved.read_text())
    assert report["step"] == 11 + OVERFLOWS
    assert 2.0**70 < report["loss_scale"] < 2.0**100
    state = torch.load(next((output / "checkpoints").glob("nonfinite-*.pt")), weights_only=True)
    for name, weight in checkpoint.load(output / "checkpoints" / "step-11.pt")["model"].items():
        assert torch.equal(state["model"][name], weight)


def _rescale(output: Path, scale: float) -> None:
    path = last_checkpoint(output)
    content = torch.load(path, weights_only=True)
    content["scaler"]["scale"] = scale
    torch.save(content, path)


def _back_to(output: Path, step: int, scale: float) -> None:
    """Makes the run go on from one of its earlier checkpoints, with another loss scale."""
    (output / "checkpoints" / "last").write_text(f"step-{step}.pt\n")
    (output / "summary.json").unlink()
    _rescale(output, scale)


def test_step_monitor_reports_harm_requests_and_due_saves_in_order():
    monitor = StepMonitor(torch.device("cpu"), may_overflow=False)
    for step, values in enumerate([(1.0, 2.0, 0, 0), (1.0, np.inf, 0, 1), (np.nan, 1.0, 2, 0)]):
        monitor.add(step, 0.1, (step,), tuple(torch.tensor(float(value)) for value in values))
    statuses = monitor.look()
    assert [status.step for status in statuses] == [0, 1, 2]
    assert [status.harmful for status in statuses] == [False, True, True]
    assert [status.end_requested for status in statuses] == [False, False, True]
    assert [status.save_due for status in statuses] == [False, True, False]
    assert monitor.look(drain=True) == []
