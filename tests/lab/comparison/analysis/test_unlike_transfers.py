"""What a comparison says where transfers of one protocol differ: readouts, criteria, labels, splits, choices."""

import pytest
from run_folders import Real, compared, real_runs, write_run

from mim.lab.comparison.result import Comparison

EQUAL = {"val/samples": 360}


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def pair(real, folder, settings=None, metrics=None, of_both=None) -> Comparison:
    """A study of two starts under one protocol; the probe of the second differs in what is given."""
    for name, ratio, keys, numbers in (("a", 0.75, {}, {}), ("b", 0.5, settings or {}, metrics or {})):
        start = write_run(folder / "pretraining" / f"{name}-seed0", real.pretraining, {"MASKER.ratio": ratio})
        home = folder / "probe" / f"{name}-seed0"
        write_run(home, real.probe, {**(of_both or {}), **keys}, {**EQUAL, **numbers}, start=start)
    return compared(folder)


def about_probes(result: Comparison) -> list[str]:
    return [text.removeprefix("probe: ") for text in result.warnings if text.startswith("probe: ")]


def test_equal_probes_need_no_word(real, tmp_path):
    assert about_probes(pair(real, tmp_path, {"OPTIMIZER.base_lr": 0.5, "LABELS.file": ""})) == []


WARNINGS = {
    "readout": ({"READOUT.norm": "none"}, {}, "readouts differ: READOUT.norm is batch in a, none in b."),
    "criterion": ({"CRITERION.smoothing": 0.1}, {}, "criteria differ: CRITERION.smoothing is 0 in a, 0.1 in b."),
    "grid": ({"PROBE.rates": "[1.0]"}, {}, "settings to choose among differ: PROBE.rates is [1, 3, 10, 30] in a,"),
    "file": ({"LABELS.file": "/x/l.csv"}, {}, "labels or splits differ: LABELS.file is (empty) in a, l.csv in b."),
    "columns": ({"LABELS.columns": "[grade]"}, {}, "labels or splits differ: LABELS.columns is [] in a, [grade] in b."),
    "group": ({"LABELS.group": "module"}, {}, "labels or splits differ: LABELS.group is (empty) in a, module in b."),
    "folds": ({"LABELS.folds": 5}, {}, "labels or splits differ: LABELS.folds is 0 in a, 5 in b."),
    "count": (
        {"LABELS.per_class": 0, "LABELS.count": 50},
        {},
        "labels or splits differ: LABELS.per_class is 8 in a, 0 in b; LABELS.count is 0 in a, 50 in b.",
    ),
    "seed": ({"LABELS.seed": 7}, {}, "labels or splits differ: LABELS.seed is 0 in a, 7 in b."),
    "number of images": (
        {},
        {"val/samples": 350},
        "held-out images are not the same: their number is 360 in a, 350 in b.",
    ),
    "samples": ({"EVALUATE.samples": 9}, {}, "held-out images are not the same: EVALUATE.samples is 0 in a, 9 in b."),
    "classes": (
        {},
        {"val/by_class": {**dict.fromkeys("012345678", 0.5), "nine": 0.5}},
        "held-out labels have classes or columns that not all have: 9 in a; nine in b.",
    ),
}


@pytest.mark.parametrize(("settings", "metrics", "warning"), WARNINGS.values(), ids=WARNINGS)
def test_warning_comes_alone_where_it_is_due(real, tmp_path, settings, metrics, warning):
    of_both = {"LABELS.file": "l.csv"} if {"LABELS.group", "LABELS.columns"} & settings.keys() else {}
    (text,) = about_probes(pair(real, tmp_path, settings, metrics, of_both))
    assert text.startswith(warning)


def test_labels_that_follow_the_seed_are_alike_where_each_seed_has_the_same(real, tmp_path):
    for start, ratio in (("a", 0.75), ("b", 0.5)):
        for seed in (0, 1):
            run = write_run(
                tmp_path / "pretraining" / f"{start}-seed{seed}",
                real.pretraining,
                {"SEED": seed, "MASKER.ratio": ratio},
            )
            keys = {"SEED": seed, "LABELS.seed": seed}
            samples = {"val/samples": 360 + seed}
            write_run(tmp_path / "probe" / f"{start}-seed{seed}", real.probe, keys, samples, start=run)
    assert about_probes(compared(tmp_path)) == []


def test_same_table_in_another_folder_is_one_protocol(real, tmp_path):
    for name, ratio in (("a", 0.75), ("b", 0.5)):
        start = write_run(tmp_path / name, real.pretraining, {"MASKER.ratio": ratio})
        write_run(tmp_path / f"{name}-probe", real.probe, {"LABELS.file": f"/{name}/l.csv"}, start=start)
    result = compared(tmp_path)
    assert [column.title for column in result.columns if column.key.startswith("transfer/")] == ["linear probe"]


def test_score_that_was_chosen_on_what_it_reports_flatters(real, tmp_path):
    on_held_out = {"PROBE.choose_share": 0.0}
    (text,) = about_probes(pair(real, tmp_path / "both", of_both=on_held_out))
    assert text.startswith("of a and b the best of several settings was chosen on the held-out images")
    single = {**on_held_out, "PROBE.rates": "[1.0]"}
    assert about_probes(pair(real, tmp_path / "single", of_both=single)) == []
    several = {**single, "PROBE.weight_decays": "[0.0, 0.1]"}
    assert len(about_probes(pair(real, tmp_path / "decays", of_both=several))) == 1


def test_two_protocols_without_a_shared_entry_are_told(real, tmp_path):
    """Without the folders of a study, other labels make another protocol."""
    for name, ratio, file in (("a", 0.75, "x.csv"), ("b", 0.5, "y.csv")):
        start = write_run(tmp_path / name, real.pretraining, {"MASKER.ratio": ratio})
        write_run(tmp_path / f"{name}-probe", real.probe, {"LABELS.file": file}, start=start)
    (text,) = [each for each in compared(tmp_path).warnings if each.startswith("No entry has both")]
    assert "which do not compare: LABELS.file x.csv against LABELS.file y.csv." in text
    write_run(tmp_path / "a-other", real.probe, {"LABELS.file": "y.csv"}, start=tmp_path / "a")
    assert not [each for each in compared(tmp_path).warnings if each.startswith("No entry has both")]
