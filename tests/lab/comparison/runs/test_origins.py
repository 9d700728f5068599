"""Which probe and which fine-tuning came from which pretraining run, wherever their folders are now."""

import shutil
from pathlib import Path

import pytest
from run_folders import Real, change_environment, compared, real_runs, run_id, titles, values_of, write_run


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def test_transfers_are_found_by_id_after_every_folder_was_moved_and_renamed(real, tmp_path):
    for number, folder in enumerate((real.pretraining, real.probe, real.finetune)):
        shutil.copytree(folder, tmp_path / f"deep{number}" / f"renamed {number}")
    (tmp_path / "deep0" / "renamed 0").rename(tmp_path / "x")
    result = compared(tmp_path / "x")
    assert [entry.name for entry in result.entries] == ["x"]
    assert titles(result) == {"linear probe", "fine-tuning"}


def test_transfers_of_an_id_that_is_not_compared_are_not_taken_whatever_their_path_says(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    probe = write_run(tmp_path / "probe", real.probe, start=run)
    change_environment(probe, **{"from": {"checkpoint": str(run), "run": "another"}})
    assert titles(compared(run)) == set()


@pytest.mark.parametrize("checkpoint", ["{run}", "{run}/checkpoints/step-14.pt", "{run}/checkpoints/best.pt"])
def test_transfers_of_runs_without_ids_are_found_by_path(real, tmp_path, checkpoint):
    run = write_run(tmp_path / "run", real.pretraining)
    probe = write_run(tmp_path / "probe", real.probe, {"INIT.checkpoint": checkpoint.format(run=run)})
    for folder in (run, probe):
        change_environment(folder, run=None, **{"from": None})
    assert titles(compared(run)) == {"linear probe"}


def test_transfers_of_runs_without_ids_are_found_in_a_study_that_was_moved(real, tmp_path, monkeypatch):
    for study, score in (("one", 0.25), ("two", 0.75)):
        run = write_run(tmp_path / study / "pretraining" / "mae-seed0", real.pretraining)
        start = f"runs/{study}/pretraining/mae-seed0/checkpoints/step-14.pt"
        probe = write_run(
            tmp_path / study / "probes" / "mae-seed0", real.probe, {"INIT.checkpoint": start}, {"val/top1": score}
        )
        for folder in (run, probe):
            change_environment(folder, run=None, **{"from": None})
    (tmp_path / "two").rename(tmp_path / "elsewhere")
    for study, score in (("one", 25), ("elsewhere", 75)):
        result = compared(tmp_path / study / "pretraining" / "mae-seed0")
        assert values_of(result, "probes") == {"mae": (score,)}


def test_transfers_that_name_another_existing_folder_are_not_taken(real, tmp_path):
    other = write_run(tmp_path / "a" / "run", real.pretraining)
    run = write_run(tmp_path / "b" / "run", real.pretraining, {"SEED": 1})
    probe = write_run(tmp_path / "b" / "probe", real.probe, start=other)
    for folder in (other, run, probe):
        change_environment(folder, run=None, **{"from": None})
    assert titles(compared(run)) == set()


def test_transfers_are_not_searched_for_where_that_is_off(real):
    assert titles(compared(real.pretraining)) == {"linear-probe", "fine-tuning"}
    assert titles(compared(real.pretraining, search=False)) == set()


def test_transfers_beside_are_taken_from_few_levels_and_not_from_checkpoints(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    near, far = tmp_path / "1" / "2" / "3" / "probe", tmp_path / "1" / "2" / "3" / "4" / "5" / "probe"
    write_run(near, real.probe, metrics={"val/top1": 0.25}, start=run)
    write_run(far, real.probe, {"LABELS.per_class": 5}, start=run)
    write_run(tmp_path / "1" / "checkpoints" / "probe", real.probe, {"LABELS.per_class": 4}, start=run)
    assert values_of(compared(run), "linear probe") == {"run": (25,)}


def test_run_given_twice_counts_once(real, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", real.pretraining)
    monkeypatch.chdir(tmp_path)
    result = compared(run, Path("run"), tmp_path, run)
    assert [entry.folders for entry in result.entries] == [("run",)]
    assert result.left_out == ()


def test_copy_of_a_run_is_left_out_by_name(real, tmp_path, monkeypatch):
    write_run(tmp_path / "run", real.pretraining)
    shutil.copytree(tmp_path / "run", tmp_path / "run copy")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "probe", real.probe, start=tmp_path / "run copy")
    result = compared(tmp_path / "run", tmp_path / "run copy")
    assert [entry.name for entry in result.entries] == ["run"]
    assert titles(result) == {"linear probe"}
    assert result.left_out == (("run copy", "a copy of run"),)


def test_copies_beside_are_passed_over(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    write_run(tmp_path / "probe", real.probe, start=run)
    shutil.copytree(tmp_path / "probe", tmp_path / "backup" / "probe")
    result = compared(run, tmp_path / "probe")
    assert result.left_out == ()
    assert titles(result) == {"linear probe"}


@pytest.mark.parametrize(("step", "taken"), [(14, False), (15, True), (None, True)])
def test_transfers_from_before_their_run_was_extended_are_left_out(real, tmp_path, step, taken):
    run = write_run(tmp_path / "run", real.pretraining, {"TRAIN.epochs": 2, "TRAIN.extended_at": "[1]"})
    change_environment(run, extensions=[{"from_epochs": 1, "to_epochs": 2, "step": 14}])
    probe = write_run(tmp_path / "probe", real.probe, start=run)
    change_environment(probe, **{"from": {"checkpoint": str(run), "run": run_id(run), "step": step}})
    result = compared(run, probe)
    assert titles(result) == ({"linear probe"} if taken else set())
    reasons = [reason for _, reason in result.left_out]
    assert reasons == ([] if taken else [f"came from step 14 of {run}, before it was extended to 2 epochs"])


def test_probes_of_random_weights_beside_a_run_stand_beside_its_own(real, tmp_path):
    """In a study by its folder, elsewhere by protocol and encoder; nothing else that lies there is taken."""
    run = write_run(tmp_path / "mae", real.pretraining)
    write_run(tmp_path / "probe", real.probe, start=run)
    write_run(tmp_path / "random", real.probe, metrics={"val/top1": 0.5})
    write_run(tmp_path / "longer", real.probe, {"TRAIN.epochs": 7})
    write_run(tmp_path / "wider", real.probe, {"ENCODER.width": 32})
    write_run(tmp_path / "tuned", real.finetune)
    write_run(tmp_path / "elsewhere" / "random", real.probe)
    origin = {"checkpoint": "/models/mae.pth"}
    write_run(tmp_path / "file", real.probe, {"INIT.checkpoint": origin["checkpoint"]}, environment={"from": origin})
    result = compared(run)
    assert [(entry.name, entry.random) for entry in result.entries] == [("mae", False), ("random", True)]
    assert values_of(result, "linear probe")["random"] == (50.0,)
    assert [entry.name for entry in compared(run, search=False).entries] == ["mae"]


def test_probes_of_random_weights_in_a_study_are_found_from_one_of_its_runs(real, tmp_path):
    run = write_run(tmp_path / "pretraining" / "mae-seed0", real.pretraining)
    write_run(tmp_path / "tuned" / "mae-seed0", real.finetune, start=run)
    write_run(tmp_path / "tuned" / "scratch-seed0", real.finetune, {"OPTIMIZER.layer_decay": 1.0})
    write_run(tmp_path / "other" / "scratch-seed0", real.finetune, {"TRAIN.epochs": 7})
    result = compared(run)
    assert [(entry.name, entry.random) for entry in result.entries] == [("mae", False), ("scratch", True)]
    assert titles(result) == {"tuned"}
