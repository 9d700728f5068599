"""Resuming and extending: which config a run goes on with; an extended run is a pure function of its config."""

import json
import shutil
from pathlib import Path

import pytest
from processes import PARTS, RECIPE, TINY, call, dying_at, last_state, losses, rows, same, summary

import mim
from mim import build
from mim.config import parse_config
from mim.engine import checkpoint
from mim.engine.plan import Plan
from mim.engine.run_folder import RunFolder
from mim.engine.trainer import Trainer
from mim.resume import FolderRecord, extension_of, resumed_config

SMALL = {**TINY, "TRAIN.batch": 256, "DATA.batch_size": 256, "CHECKPOINT.every_epochs": 0, "TRAIN.ema": 0.9}
SMALL |= {
    "EVALUATE.every_epochs": 0,
    "EVALUATE.knn": 0,
    "EVALUATE.at_start": True,
    "SCHEDULE.warmup_epochs": 0.4,
}  # 5 steps an epoch
STEPS, PATH = 5, Path("a/step-10.pt")


def train(output: Path, keys: dict | None = None, **arguments) -> dict:
    return mim.train(RECIPE, {**SMALL, "TRAIN.epochs": 2, **(keys or {})}, output, quiet=True, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two epochs; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train(output)
    return output


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def recorded(output: Path) -> dict:
    return json.loads((output / "environment.json").read_text())


def rate_of(lengths: tuple[int, ...]) -> list[float]:
    """The learning rate of each step of a run that has, or was extended to, these epochs."""
    *earlier, epochs = lengths
    cfg = mim.load_config(RECIPE, {**SMALL, "TRAIN.epochs": epochs, "TRAIN.extended_at": earlier})
    settings = build.engine_settings(cfg)
    schedule = Plan.of(settings, 256 * STEPS, 1).schedule(settings)
    return [schedule.at(step) for step in range(epochs * STEPS)]


# -------------------------------------------------------------------- a run that is extended


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory) -> Path:
    """The same run, extended to three epochs; not to be changed."""
    output = shutil.copytree(finished, tmp_path_factory.mktemp("extended") / "run")
    train(output, extend=3)
    return output


def test_extended_run_follows_the_schedule_of_the_longer_run_from_the_step_where_it_stood(extended):
    rates = [row["train/learning_rate"] for row in rows(extended) if "train/loss" in row]
    assert rates == rate_of((2, 3))
    assert rates[:10] == rate_of((2,))
    assert rates[10:] == rate_of((3,))[10:]
    assert rates[10] > 3 * rates[9]


@pytest.mark.slow
def test_extended_run_equals_a_run_of_its_config_from_the_start(extended, tmp_path):
    """To the bit: weights, moving average, moments, losses. So the optimizer state was kept."""
    mim.train(extended / "config.yaml", (), tmp_path / "again", quiet=True)
    ours, theirs = last_state(tmp_path / "again"), last_state(extended)
    for part in PARTS:
        same(ours[part], theirs[part], part)
    assert losses(tmp_path / "again") == losses(extended)


def test_extension_is_recorded_and_nothing_of_the_shorter_run_is_lost(finished, extended):
    cfg = mim.load_config(extended / "config.yaml")
    assert (cfg.TRAIN.epochs, cfg.TRAIN.extended_at) == (3, (2,))
    assert parse_config(last_state(extended)["config"]).TRAIN.lengths == (2, 3)
    assert recorded(finished)["extensions"] == []
    assert recorded(extended)["extensions"] == [{"from_epochs": 2, "to_epochs": 3, "step": 10}]
    assert recorded(extended)["run"] == recorded(finished)["run"]
    assert (extended / "summary-epoch-2.json").read_bytes() == (finished / "summary.json").read_bytes()
    assert (summary(extended)["epochs"], summary(extended)["steps"]) == (3, 15)
    assert summary(extended)["val/loss_at_start"] == summary(finished)["val/loss_at_start"]
    assert summary(extended)["val/loss"] < summary(finished)["val/loss"]
    assert summary(extended)["seconds"] > summary(finished)["seconds"]
    log = (extended / "log.txt").read_text()
    rates = rate_of((2, 3))
    assert "at epoch 2 (step 10) to 3 epochs; from there on the learning rate is that of a run of 3 epochs: " in log
    assert f"{rates[10]:.3g} after {rates[9]:.3g}" in log


@pytest.mark.parametrize(("keys", "extend"), [({}, None), ({"TRAIN.epochs": 3}, None), ({}, 3)])
def test_extended_run_is_finished_for_each_command_that_means_it(extended, tmp_path, keys, extend):
    output = shutil.copytree(extended, tmp_path / "run")
    assert train(output, keys, extend=extend) == summary(extended)
    assert recorded(output)["extensions"] == recorded(extended)["extensions"]


@pytest.mark.slow
def test_extended_run_can_be_extended_again(extended, tmp_path):
    output = shutil.copytree(extended, tmp_path / "run")
    assert train(output, extend=4)["epochs"] == 4
    assert [row["train/learning_rate"] for row in rows(output) if "train/loss" in row] == rate_of((2, 3, 4))
    assert recorded(output)["extensions"] == [
        {"from_epochs": 2, "to_epochs": 3, "step": 10},
        {"from_epochs": 3, "to_epochs": 4, "step": 15},
    ]
    assert [summary_file.name for summary_file in sorted(output.glob("summary-*"))] == [
        "summary-epoch-2.json",
        "summary-epoch-3.json",
    ]


@pytest.mark.slow
def test_extension_that_was_killed_before_its_first_checkpoint_goes_on(copy, extended, monkeypatch):
    def die(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", die)
        with pytest.raises(MemoryError):
            train(copy, extend=3)
    assert not (copy / "summary.json").exists()
    train(copy)
    same(last_state(copy)["model"], last_state(extended)["model"])
    assert recorded(copy)["extensions"] == recorded(extended)["extensions"]


@pytest.mark.slow
@pytest.mark.parametrize("extend", [3, None], ids=["same command", "plain command"])
def test_extension_that_was_killed_in_the_middle_goes_on(copy, extended, extend):
    with dying_at(13):
        train(copy, {"CHECKPOINT.every_minutes": 1e-6}, extend=3)
    assert last_state(copy)["step"] in (11, 12, 13)
    train(copy, extend=extend)
    same(last_state(copy)["model"], last_state(extended)["model"])
    assert losses(copy) == losses(extended)


# -------------------------------------------------------------------- a stable phase that is prolonged

WSD = {"SCHEDULE.name": "wsd", "SCHEDULE.decay_epochs": 1, "CHECKPOINT.keep": 1}


@pytest.mark.slow
def test_extended_wsd_equals_a_run_of_its_length_and_keeps_the_end_of_the_shorter_one(tmp_path, monkeypatch):
    """To the bit, also where the extension was killed before its first checkpoint."""
    train(tmp_path / "run", WSD)
    end = last_state(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", lambda *_: exec("raise MemoryError"))
        with pytest.raises(MemoryError):
            train(tmp_path / "run", WSD, extend=3)
    train(tmp_path / "run", WSD, extend=3)
    train(tmp_path / "whole", {**WSD, "TRAIN.epochs": 3})
    ours, theirs = last_state(tmp_path / "run"), last_state(tmp_path / "whole")
    for part in PARTS:
        same(ours[part], theirs[part])
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert recorded(tmp_path / "run")["extensions"] == [{"from_epochs": 2, "to_epochs": 3, "step": 5}]
    assert (tmp_path / "run" / "metrics-epoch-2.jsonl").read_bytes() == metrics
    assert (tmp_path / "run" / "summary-epoch-2.json").exists()
    same(checkpoint.load(tmp_path / "run" / "checkpoints" / "epoch-2.pt")["model"], end["model"])
    assert (
        "from epoch 2 to 3 epochs, out of its stable phase, which ended at step 5"
        in (tmp_path / "run" / "log.txt").read_text()
    )
    (tmp_path / "run" / "checkpoints" / "step-10.pt").unlink()
    with pytest.raises(ValueError, match=r"--extend: SCHEDULE\.name wsd .* no intact checkpoint of step 10 or before"):
        train(tmp_path / "run", WSD, extend=4)


# -------------------------------------------------------------------- what cannot be


def test_extend_says_what_cannot_be_and_what_to_do_instead(copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "log.txt"}
    cases = [
        ({}, {"extend": 2}, r"--extend is 2: .* has 2 epochs already, so name more than 2"),
        ({}, {"extend": 1}, r"--extend is 1: .* has 2 epochs already"),
        ({"TRAIN.epochs": 3}, {}, r"TRAIN\.epochs: 2 there, 3 here\n.*To prolong that run, add --extend 3"),
        ({"OPTIMIZER.base_lr": 1e-4}, {"extend": 3}, r"belongs to another run.*\n  OPTIMIZER\.base_lr"),
        ({}, {"extend": 3, "resume": "x.pt"}, "leave --resume CHECKPOINT out"),
    ]
    for keys, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            train(copy, keys, **arguments)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "log.txt"}
    with pytest.raises(ValueError, match=r"--extend: .* holds no last checkpoint .* from$"):
        train(tmp_path / "new", extend=3)
    assert not (tmp_path / "new").exists()
    (copy / "checkpoints" / "step-10.pt").rename(copy / "checkpoints" / "best.pt")
    (copy / "checkpoints" / "last").unlink()
    with pytest.raises(ValueError, match=r"no last checkpoint .*: first copy .*best\.pt to .*step-10\.pt, with which"):
        train(copy, extend=3)


def test_extend_is_a_word_of_the_command(copy):
    code, text = call(copy, {**SMALL, "TRAIN.epochs": 2}, RECIPE, ("--extend", "2"))
    assert code == 2
    assert "--extend is 2" in text


# -------------------------------------------------------------------- the config that a run goes on with


def config(lengths: tuple[int, ...], **keys: object):
    *earlier, epochs = lengths
    return mim.load_config(RECIPE, {"TRAIN.epochs": epochs, "TRAIN.extended_at": earlier, **keys})


def resumed(command, run, record=(), summary=(0, 0), step: int = 10, extend: int | None = None) -> tuple[int, ...]:
    """The lengths that a command's run goes on with."""
    content = {"config": config(run).to_yaml(), "step": step}
    return resumed_config(config(command), content, PATH, FolderRecord(record, summary), extend).TRAIN.lengths


@pytest.mark.parametrize(
    ("command", "run", "record", "expected"),
    [
        ((4,), (4,), (4,), (4,)),
        ((4,), (4,), (), (4,)),  # config.yaml is gone
        ((4,), (4, 6), (4, 6), (4, 6)),
        ((6,), (4, 6), (4, 6), (4, 6)),
        ((4,), (4,), (4, 6), (4, 6)),  # killed before the first checkpoint of the extension
        ((4,), (4, 6), (4,), (4, 6)),  # a folder that the checkpoint was copied into
        ((4,), (4,), (8,), (4,)),  # config.yaml was changed by hand
        ((4, 6), (4, 6, 8), (4, 6, 8), (4, 6, 8)),
    ],
)
def test_resumed_config_has_the_lengths_of_its_run(command, run, record, expected):
    assert resumed(command, run, record) == expected


@pytest.mark.parametrize(
    ("command", "run", "hint"),
    [((6,), (4,), ", once it is finished, add --extend 6"), ((3,), (4,), ""), ((5,), (4, 6), ""), ((4, 8), (4,), "8")],
)
def test_resumed_config_refuses_another_length(command, run, hint):
    with pytest.raises(ValueError, match=r"belongs to another run[^-]*TRAIN\.epochs: ") as caught:
        resumed(command, run, run)
    assert (hint in str(caught.value)) if hint else ("--extend" not in str(caught.value))


def test_extend_needs_a_finished_run():
    assert resumed((4,), (4,), (4,), summary=(4, 10), extend=6) == (4, 6)
    assert resumed((6,), (4,), (4,), summary=(4, 10), extend=6) == (4, 6)
    for summary_of_another in ((0, 0), (4, 20), (3, 10)):
        with pytest.raises(ValueError, match=r"step-10\.pt stands at step 10 on its way to epoch 4: finish it first"):
            resumed((4,), (4,), (4,), summary=summary_of_another, extend=6)
    with pytest.raises(ValueError, match=r"stands at step 10 on its way to epoch 6"):  # the first extension goes on
        resumed((4,), (4, 6), (4, 6), extend=8)


def test_folder_record_of_damaged_files_is_empty(tmp_path):
    folder = RunFolder(tmp_path)
    assert FolderRecord.of(folder) == FolderRecord()
    folder.config.write_text(config((2, 4)).to_yaml())
    for text in ("", "[1]", '{"epochs": 4}', '{"epochs": null, "steps": 1}'):
        folder.summary.write_text(text)
        assert FolderRecord.of(folder) == FolderRecord((2, 4))
    folder.summary.write_text('{"epochs": 4, "steps": 20}')
    assert FolderRecord.of(folder) == FolderRecord((2, 4), (4, 20))
    folder.config.write_text("TRAIN: {epochs: -1")
    assert FolderRecord.of(folder).lengths == ()


def test_extension_begins_where_the_config_is_longer_than_that_of_the_checkpoint():
    content = {"config": config((4,)).to_yaml(), "step": 56}
    assert extension_of(config((4,)), content) is None
    assert extension_of(config((4, 6)), content) == {"from_epochs": 4, "to_epochs": 6, "step": 56}
