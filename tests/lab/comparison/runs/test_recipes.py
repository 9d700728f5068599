"""Which runs are of one recipe, which probes of one protocol, and what they are called."""

import json

import pytest
from run_folders import Real, compared, real_runs, titles, values_of, write_run

from mim.lab.comparison.formatting import ABSENT

PLUGIN = """
from mim.encoders.vit import ViT


class Mine(ViT, name="mine_of_comparison"):
    def __init__(self, image, *, flavour: int = 3, **keys):
        super().__init__(image, **keys)
"""


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def test_runs_that_differ_in_what_has_no_effect_are_one_recipe(real, tmp_path):
    settings = {
        "LOG.every_steps": 7,
        "CHECKPOINT.keep": 9,
        "DATA.workers": 3,
        "DATA.path": "/elsewhere",
        "EVALUATE.reconstructions": 4,
    }
    write_run(
        tmp_path / "a-seed0",
        real.pretraining,
        {"DATA.path": "/data/elsewhere", "DATA.mean": "[0.300]", "DATA.std": "[0.37]"},
    )
    write_run(
        tmp_path / "a-seed1", real.pretraining, {"SEED": 1, **settings, "DATA.mean": "[0.304]", "DATA.std": "[0.374]"}
    )
    result = compared(tmp_path)
    assert [(entry.name, entry.seeds) for entry in result.entries] == [("a", (0, 1))]


@pytest.mark.parametrize(
    ("settings", "summary"),
    [
        ({"MASKER.ratio": 0.5}, {}),
        ({"TRAIN.epochs": 5}, {}),
        ({"EVALUATE.knn": 1}, {}),
        ({"DATA.mean": "[0.9]", "DATA.std": "[0.1]"}, {}),
        ({"DATA.path": "/data/other"}, {}),
        ({}, {"images_seen": 64}),
    ],
)
def test_runs_that_differ_in_what_matters_are_two(real, tmp_path, settings, summary):
    write_run(tmp_path / "a-seed0", real.pretraining)
    write_run(tmp_path / "a-seed1", real.pretraining, {"SEED": 1, **settings}, summary)
    result = compared(tmp_path)
    assert [entry.seeds for entry in result.entries] == [(0,), (1,)]
    assert len({entry.name for entry in result.entries}) == 2


def test_batch_of_zero_is_the_batch_that_came_of_it(real, tmp_path):
    write_run(tmp_path / "a-seed0", real.pretraining, {"TRAIN.batch": 96})
    write_run(tmp_path / "a-seed1", real.pretraining, {"SEED": 1, "TRAIN.batch": 0})
    assert [entry.seeds for entry in compared(tmp_path).entries] == [(0, 1)]


def test_repeated_studies_of_one_recipe_stay_apart(real, tmp_path):
    for study in ("before", "after"):
        for seed in (0, 1):
            write_run(tmp_path / study / f"mae-seed{seed}", real.pretraining, {"SEED": seed})
    result = compared(tmp_path / "before", tmp_path / "after")
    assert [(entry.name, entry.seeds) for entry in result.entries] == [("before/mae", (0, 1)), ("after/mae", (0, 1))]
    assert {(test.first, test.second) for test in result.tests} >= {("before/mae", "after/mae")}


def test_names_are_those_of_folders_without_seeds(real, tmp_path):
    for number, name in enumerate(("mae-seed0", "Big_Seed=12", "seed3")):
        write_run(tmp_path / str(number) / name, real.pretraining, {"OPTIMIZER.weight_decay": number})
    assert [entry.name for entry in compared(tmp_path).entries] == ["mae", "Big", "2"]


def test_names_that_are_alike_say_what_differs(real, tmp_path):
    for ratio in (0.5, 0.75):
        write_run(tmp_path / f"{ratio}" / "mae", real.pretraining, {"MASKER.ratio": ratio})
    assert [entry.name for entry in compared(tmp_path).entries] == ["mae (MASKER.ratio 0.5)", "mae (MASKER.ratio 0.75)"]


def test_entries_below_a_folder_stand_in_the_order_of_the_numbers_in_names(real, tmp_path):
    for depth in (10, 2, 1):
        write_run(tmp_path / f"depth-{depth}", real.pretraining, {"HEAD.depth": depth})
    assert [entry.name for entry in compared(tmp_path).entries] == ["depth-1", "depth-2", "depth-10"]
    folders = [tmp_path / f"depth-{depth}" for depth in (2, 10, 1)]
    assert [entry.name for entry in compared(*folders).entries] == ["depth-2", "depth-10", "depth-1"]


def test_method_is_told_in_a_line(real, tmp_path):
    simmim = {
        "MASKER.cell": 8,
        "MASKER.ratio": 0.6,
        "ENCODER.hidden": "replace",
        "HEAD.name": "pixel_shuffle",
        "TARGET.normalize": "none",
        "LOSS.name": "l1",
        "LOSS.over": "all",
    }
    write_run(tmp_path / "a", real.pretraining)
    write_run(tmp_path / "b", real.pretraining, simmim)
    mae, simmim = (entry.method.split(" · ") for entry in compared(tmp_path).entries)
    head = "transformer width 16, depth 1, heads 2"
    assert mae == ["random 75% of 4 px", "vit 16 wide, drop", head, "pixels normalize patch", "mse"]
    assert simmim == ["random 62.5% of 8 px", "vit 16 wide, replace", "pixel_shuffle", "pixels", "l1 over all cells"]


def test_method_names_all_targets(real, tmp_path):
    targets = [{"name": "pixels", "normalize": "patch"}, {"name": "lowpass", "weight": 0.5, "radius": 8}]
    write_run(tmp_path / "a", real.pretraining)
    write_run(tmp_path / "b", real.pretraining, {"TARGET": targets})
    result = compared(tmp_path)
    assert result.entries[1].method.split(" · ")[3] == "pixels normalize patch + lowpass weight 0.5, radius 8"
    settings = {setting.key: (setting.role, setting.values) for setting in result.settings}
    assert settings["TARGET.1.weight"] == ("method", (ABSENT, "0.5"))


def test_users_own_encoder_is_compared(real, tmp_path, monkeypatch):
    (tmp_path / "mine_for_comparison.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {"PLUGINS": "[mine_for_comparison]", "ENCODER.name": "mine_of_comparison", "ENCODER.flavour": 4}
    write_run(tmp_path / "a", real.pretraining)
    write_run(tmp_path / "b", real.pretraining, keys)
    result = compared(tmp_path)
    settings = {setting.key: setting.values for setting in result.settings}
    assert settings["ENCODER.name"] == ("vit", "mine_of_comparison")
    assert settings["ENCODER.flavour"] == ("–", "4")
    assert "mine_of_comparison 16 wide, drop" in result.entries[1].method


# ---------------------------------------------------------------- protocols


def test_protocols_ignore_what_belongs_to_the_start_and_say_so(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    write_run(tmp_path / "ft", real.finetune, {"OPTIMIZER.layer_decay": 0.5, "SEED": 1}, {"val/top1": 0.5}, start=run)
    scratch = write_run(tmp_path / "ft0", real.finetune, {"OPTIMIZER.layer_decay": 1.0}, {"val/top1": 0.25})
    result = compared(run, scratch)
    assert values_of(result, "fine-tuning") == {"run": (50,), "ft0": (25,)}
    note = next(column.note for column in result.columns if column.title == "fine-tuning")
    assert note == "OPTIMIZER.layer_decay is 0.5 in run; 1 in ft0"
    assert {entry.name: entry.method for entry in result.entries}["ft0"] == "vit · random weights"


def test_protocols_tell_apart_what_varies_for_one_start(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    for decay in (0.5, 0.75):
        write_run(
            tmp_path / f"ft{decay}", real.finetune, {"OPTIMIZER.layer_decay": decay}, {"val/top1": decay}, start=run
        )
    result = compared(run)
    assert values_of(result, "fine-tuning, OPTIMIZER.layer_decay 0.5") == {"run": (50,)}
    assert values_of(result, "fine-tuning, OPTIMIZER.layer_decay 0.75") == {"run": (75,)}


def test_protocols_are_named_by_what_differs_among_them(real, tmp_path):
    run = write_run(tmp_path / "run", real.pretraining)
    for share in (1.0, 0.5):
        write_run(tmp_path / f"ft{share}", real.finetune, {"LABELS.per_class": 0, "LABELS.share": share}, start=run)
    write_run(tmp_path / "probe", real.probe, start=run)
    result = compared(run)
    assert titles(result) == {"linear probe", "fine-tuning, LABELS.share 0.5", "fine-tuning, LABELS.share 1"}


def test_several_transfers_of_one_pretraining_are_its_spread_and_of_many_are_averaged(real, tmp_path):
    one = write_run(tmp_path / "one", real.pretraining)
    for seed, score in ((0, 0.2), (1, 0.4)):
        write_run(tmp_path / f"one-ft{seed}", real.finetune, {"SEED": seed}, {"val/top1": score}, start=one)
    many = [
        write_run(tmp_path / f"many-seed{seed}", real.pretraining, {"SEED": seed, "HEAD.depth": 2}) for seed in (0, 1)
    ]
    for run, seed, score in ((many[0], 0, 0.2), (many[0], 5, 0.4), (many[1], 1, 0.6)):
        name = f"{run.name}-ft{seed}"
        write_run(tmp_path / name, real.finetune, {"SEED": seed}, {"val/top1": score}, start=run)
    result = compared(one, *many)
    assert values_of(result, "fine-tuning") == {"one": pytest.approx((20, 40)), "many": pytest.approx((30, 60))}
    rows = {(run.entry, run.seed): run.metrics["transfer/1"] for run in result.runs}
    assert rows == {("one", 0): pytest.approx(30), ("many", 0): pytest.approx(30), ("many", 1): pytest.approx(60)}


def test_second_transfer_of_one_start_protocol_and_seed_is_left_out_by_name(real, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", real.pretraining)
    for name, score in (("ft1", 0.2), ("ft2", 0.9)):
        write_run(tmp_path / name, real.finetune, metrics={"val/top1": score}, start=run)
    monkeypatch.chdir(tmp_path)
    result = compared(run)
    assert values_of(result, "fine-tuning") == {"run": (20,)}
    assert result.left_out == (("ft2", "of the same start, protocol and seed as ft1"),)


def test_transfers_whose_pretraining_is_not_given_are_entries_by_their_start(real, tmp_path):
    run = write_run(tmp_path / "hidden" / "mae-seed0", real.pretraining)
    probe = write_run(tmp_path / "probe", real.probe, start=run)
    scratch = [write_run(tmp_path / f"s{seed}", real.probe, {"SEED": seed}, {"val/top1": 0.1}) for seed in (0, 1)]
    result = compared(probe, *scratch)
    assert [(entry.name, entry.seeds) for entry in result.entries] == [("mae", (0,)), ("scratch", (0, 1))]
    assert values_of(result, "linear probe")["scratch"] == (10, 10)
    assert result.curves == ()


# ---------------------------------------------------------------- studies


def study(real, output, names=True):
    """Two starts and scratch under one protocol, seeds 0 and 1, as a study lays them out."""
    for start, ratio in (("z-first", 0.75), ("a-second", 0.5)):
        for seed in (0, 1):
            run = write_run(
                output / "pretraining" / f"{start}-seed{seed}", real.pretraining, {"SEED": seed, "MASKER.ratio": ratio}
            )
            write_run(output / "few-labels" / f"{start}-seed{seed}", real.finetune, {"SEED": seed}, start=run)
            write_run(
                output / "all-labels" / f"{start}-seed{seed}",
                real.finetune,
                {"SEED": seed, "LABELS.per_class": 5},
                start=run,
            )
    for seed in (0, 1):
        settings = {"SEED": seed, "OPTIMIZER.layer_decay": 1.0, "TRAIN.ema": 0.5}
        write_run(output / "few-labels" / f"scratch-seed{seed}", real.finetune, settings)
    if names:
        by_protocol = {"val/top1": {"Few: labels!": {}, "All labels": {}}}
        trials = {"Z (first)": by_protocol, "A, second": by_protocol, "Scratch": by_protocol}
        (output / "results.json").write_text(json.dumps({"trials": trials}))
    return output


def test_study_has_its_own_names_in_its_own_order(real, tmp_path):
    result = compared(study(real, tmp_path / "out"))
    assert [(entry.name, entry.seeds) for entry in result.entries] == [
        ("Z (first)", (0, 1)),
        ("A, second", (0, 1)),
        ("Scratch", (0, 1)),
    ]
    transfers = [column.title for column in result.columns if column.key.startswith("transfer/")]
    assert transfers == ["Few: labels!", "All labels"]
    assert set(values_of(result, "Few: labels!")) == {"Z (first)", "A, second", "Scratch"}


def test_study_without_names_is_told_by_its_folders(real, tmp_path):
    result = compared(study(real, tmp_path / "out", names=False))
    assert [entry.name for entry in result.entries] == ["a-second", "z-first", "scratch"]
    assert titles(result) == {"few-labels", "all-labels"}


def test_protocols_of_studies_are_those_of_their_folders_whatever_their_starts_change(real, tmp_path):
    result = compared(study(real, tmp_path / "out"))
    note = next(column.note for column in result.columns if column.title == "Few: labels!")
    assert "OPTIMIZER.layer_decay" in note
    assert "TRAIN.ema is 0 in Z (first) and 'A, second'; 0.5 in Scratch" in note


def test_probes_of_a_study_are_found_from_its_pretraining_runs(real, tmp_path):
    output = study(real, tmp_path / "out")
    result = compared(*(output / "pretraining" / f"z-first-seed{seed}" for seed in (0, 1)))
    assert [(entry.name, entry.random) for entry in result.entries] == [("Z (first)", False), ("Scratch", True)]
    assert titles(result) == {"Few: labels!", "All labels"}


def test_entries_over_several_studies_share_columns_where_protocols_agree(real, tmp_path):
    one, two = (study(real, tmp_path / name) for name in ("one", "two"))
    result = compared(one, two)
    assert titles(result) == {"Few: labels!", "All labels"}
    assert len(values_of(result, "All labels")) == 4


def test_folders_that_only_look_like_a_study_are_told_apart_by_config(real, tmp_path):
    run = write_run(tmp_path / "pretraining" / "mae-seed0", real.pretraining)
    for rate in (0.25, 0.5):
        write_run(tmp_path / "tuned" / f"mae-lr{rate}-seed0", real.finetune, {"OPTIMIZER.base_lr": rate}, start=run)
    result = compared(run)
    assert titles(result) == {f"fine-tuning, OPTIMIZER.base_lr {rate}" for rate in (0.25, 0.5)}
    assert result.left_out == ()


def test_paired_tests_of_a_study_pair_its_seeds(real, tmp_path):
    result = compared(study(real, tmp_path / "out"))
    tested = {(test.first, test.second, test.seeds) for test in result.tests if test.column.startswith("transfer/")}
    assert ("Z (first)", "Scratch", (0, 1)) in tested
