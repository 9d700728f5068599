"""Callbacks of a run: when they are called, that they change no bit, and that what they raise loses nothing."""

import json
import random

import numpy as np
import pytest
import torch
from processes import PARTS, RECIPE, TINY, last_state, losses, rows, same, timeless_rows
from small_data import write_digits

import mim

KEYS = {**TINY, "TRAIN.batch": 8, "DATA.batch_size": 8, "DATA.workers": 0, "DATA.name": "folder", "TRAIN.epochs": 2}
KEYS |= {"EVALUATE.at_start": True, "EVALUATE.every_epochs": 1, "EVALUATE.reconstructions": 2, "EVALUATE.samples": 4}


class Recorder(mim.Callback):
    """Notes what it is told, spoils what it is given, and draws from every generator that there is."""

    def __init__(self):
        self.steps, self.reports = [], []

    def on_step(self, progress, metrics):
        self.steps.append((progress.step, progress.images_seen, metrics["train/loss"]))
        metrics["train/loss"] = 0.0
        self._draw()

    def on_evaluation(self, progress, report):
        self.reports.append((progress.step, report.metrics["val/loss"], set(report.pictures)))
        report.metrics.clear()
        self._draw()

    def _draw(self):
        torch.manual_seed(9)
        torch.rand(3)
        np.random.default_rng().random(3)
        random.random()


class Failing(mim.Callback):
    """Raises an error at a step, and must not be called again."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step(self, progress, metrics):
        assert progress.step <= self.step, "called again after an error"
        if progress.step == self.step:
            raise self.error


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Of a run of 10 steps on 40 digits; four are held out."""
    images = tmp_path_factory.mktemp("images")
    write_digits(images, 44)
    return {**KEYS, "DATA.path": str(images), "DATA.val_share": 4 / 44}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, keys):
    """The folder of that run without callbacks."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    mim.train(RECIPE, keys, folder, quiet=True)
    return folder


def assert_same_run(folder, plain):
    ours, theirs = last_state(folder), last_state(plain)
    for part in PARTS:
        same(ours[part], theirs[part], part)
    assert timeless_rows(folder) == timeless_rows(plain)


def test_callbacks_are_told_of_each_log_line_and_evaluation_and_change_no_bit(tmp_path, keys, plain):
    recorder = Recorder()
    mim.train(RECIPE, keys, tmp_path / "run", quiet=True, callbacks=[recorder])
    assert_same_run(tmp_path / "run", plain)
    logged = [(row["step"], row["images_seen"], row["train/loss"]) for row in rows(plain) if "train/loss" in row]
    assert recorder.steps == logged
    evaluated = [(row["step"], row["val/loss"], {"reconstructions"}) for row in rows(plain) if "val/loss" in row]
    assert recorder.reports == evaluated
    assert [step for step, *_ in evaluated] == [0, 5, 10]


def test_callback_that_fails_ends_the_run_with_a_checkpoint_from_which_it_goes_on(tmp_path, keys, plain, capsys):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError, match="by the callback"):
        mim.train(RECIPE, keys, folder, callbacks=[Failing(3, ZeroDivisionError("by the callback"))])
    assert last_state(folder)["step"] == 4
    assert len(losses(folder)) == 4
    assert "warning: the callback Failing ends the run: ZeroDivisionError: by the callback" in capsys.readouterr().out
    assert "stopped: RunInterrupted: ended on ZeroDivisionError: by the callback" in (folder / "log.txt").read_text()
    mim.train(RECIPE, keys, folder, quiet=True)
    assert_same_run(folder, plain)


@pytest.mark.parametrize("error", [mim.RunInterrupted("enough"), ValueError("late")], ids=["request", "error"])
def test_callback_that_raises_after_the_last_step_leaves_a_finished_run(tmp_path, keys, plain, error):
    arguments = {"output": tmp_path / "run", "quiet": True, "callbacks": [Failing(10, error)]}
    if isinstance(error, mim.RunInterrupted):
        assert mim.train(RECIPE, keys, **arguments)["steps"] == 10
    else:
        with pytest.raises(ValueError, match="late"):
            mim.train(RECIPE, keys, **arguments)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 10
    assert_same_run(tmp_path / "run", plain)


@pytest.mark.parametrize(
    ("callback", "text"),
    [(print, "lacks on_step or on_evaluation"), (Recorder, "the class Recorder: pass an object")],
    ids=["function", "class"],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, keys, callback, text):
    with pytest.raises(ValueError, match=text):
        mim.train(RECIPE, keys, tmp_path / "run", callbacks=[callback])
    assert not (tmp_path / "run").exists()
