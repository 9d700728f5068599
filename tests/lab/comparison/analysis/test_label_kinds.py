"""Comparisons of transfers with labels of every kind: columns, units, directions, tables, terminal and CSV."""

import csv
import io
import json

import numpy as np
import pytest
from collecting import answered, result_of
from label_files import write_images, write_table
from PIL import Image
from processes import PROBE, TINY_CLASSIFIER, call
from rich.console import Console
from run_folders import Real, compared, read_json, real_runs, titles, values_of, write_run

from mim.lab.comparison import show, write
from mim.lab.comparison.result import Comparison

MAIN = {"classes": ("mAP", "%"), "number": ("R²", ""), "mask": ("mIoU", "%")}
MORE = {
    "class": {"top-5", "balanced accuracy", "macro F1", "AUROC", "calibration error"},
    "classes": {"AUROC", "macro F1"},
    "number": {"MAE", "RMSE", "Spearman"},
    "mask": {"pixel accuracy", "boundary F1"},
}


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def write_probe(folder, real, start, metrics, settings=None):
    """A probe with these metrics of held-out labels, and no others."""
    write_run(folder, real.probe, settings, start=start)
    summary = {key: value for key, value in read_json(folder / "summary.json").items() if "val/" not in key}
    (folder / "summary.json").write_text(json.dumps({**summary, **metrics}))


def entries(real, folder, probes, kind=None) -> Comparison:
    """A study of two starts over as many seeds as each has metrics."""
    for name, ratio in (("a", 0.75), ("b", 0.5)):
        for seed, metrics in enumerate(probes[name]):
            keys = {"SEED": seed}
            start = folder / "pretraining" / f"{name}-seed{seed}"
            write_run(start, real.pretraining, {**keys, "MASKER.ratio": ratio})
            write_probe(folder / "probe" / f"{name}-seed{seed}", real, start, metrics, keys)
    return compared(folder)


def measured(kind: str) -> dict[str, float]:
    """What evaluation computes of answers to labels of a kind."""
    result = result_of(kind, answered(kind, 6, 40), 6, resamples=20)
    return {**result.metrics, **result.details()}


def text_of(comparison: Comparison, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(comparison, console)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", MAIN)
def test_main_metric_of_a_kind_has_the_column_and_the_others_a_table(real, tmp_path, kind):
    metrics = measured(kind)
    name, unit = MAIN[kind]
    result = entries(real, tmp_path, {"a": [metrics], "b": [metrics]})
    assert result.left_out == ()
    assert titles(result) == {f"probe, {name}"}
    column = next(column for column in result.columns if column.key == "transfer/1")
    assert (column.unit, column.better, column.section) == (unit, "higher", "accuracy")
    of_table = {each.title.removeprefix("probe, "): each for each in result.columns if each.section == "more"}
    assert of_table.keys() == MORE[kind]
    assert {each.better for title, each in of_table.items() if title in ("MAE", "RMSE")} <= {"lower"}
    main = next(key for key in metrics if key in ("val/mean_ap", "val/r2", "val/miou"))
    assert values_of(result, column.title)["a"] == (metrics[main] * (100 if unit else 1),)


def test_further_metrics_of_one_class_stand_beside_top1_which_needs_no_name(real, tmp_path):
    result = entries(real, tmp_path, {"a": [measured("class")], "b": [measured("class")]})
    assert titles(result) == {"probe"}
    assert {each.title.removeprefix("probe, ") for each in result.columns if each.section == "more"} == MORE["class"]
    assert [each.better for each in result.columns if "calibration" in each.title] == ["lower"]


def test_r2_is_tested_marked_and_written_with_its_digits(real, tmp_path):
    values = {"a": (0.91, 0.915, 0.92), "b": (-0.2, -0.19, -0.21)}
    probes = {name: [{"val/r2": r2, "val/mae": 1 - r2} for r2 in each] for name, each in values.items()}
    result = entries(real, tmp_path, probes)
    assert result.best["transfer/1"] == "a"
    assert result.best["more/1/val/mae"] == "a"  # the lower
    (test,) = [test for test in result.tests if test.column == "transfer/1"]
    assert test.result.difference.mean == pytest.approx(1.115)
    text = text_of(result)
    assert "probe, R²" in text
    assert "0.92 ± 0.01" in text
    assert "MAE" not in text
    assert "More metrics of held-out labels are on the page and in comparison.csv." in text


def test_r2_ends_at_1(real, tmp_path):
    result = entries(real, tmp_path, {"a": [{"val/r2": 0.99}, {"val/r2": 0.7}], "b": [{"val/r2": 0.5}] * 2})
    assert "0.84 [0.00, 1.00]" in text_of(result)  # by halves it would be 0.84 ± 1.84


def test_r2_beside_that_of_random_weights(real, tmp_path):
    start = write_run(tmp_path / "run", real.pretraining)
    write_probe(tmp_path / "probe-run", real, start, {"val/r2": 0.123})
    write_probe(tmp_path / "probe-random", real, None, {"val/r2": 0.456})
    (line,) = [text for text in compared(tmp_path).evidence if "random weights: run" in text]
    assert line == "Linear probe, R² is no better than that of random weights: run 0.123 beside 0.456."


def test_labels_of_two_kinds_under_one_protocol_have_a_column_each(real, tmp_path):
    result = entries(real, tmp_path, {"a": [{"val/top1": 0.5}], "b": [{"val/r2": 0.25}]})
    assert titles(result) == {"probe, top-1", "probe, R²"}
    assert values_of(result, "probe, top-1") == {"a": (50.0,)}
    assert values_of(result, "probe, R²") == {"b": (0.25,)}


def test_missing_main_metric_is_named_by_the_kind(real, tmp_path):
    metrics = measured("number")
    del metrics["val/r2"]
    result = entries(real, tmp_path, {"a": [metrics], "b": [measured("number")]})
    ((_, reason),) = result.left_out
    assert reason == "summary.json lacks val/r2: compared without"
    assert values_of(result, "probe, MAE").keys() == {"a", "b"}


def test_page_has_a_table_of_more_metrics_and_csv_all_of_them(real, tmp_path):
    metrics = measured("number")
    page = write(entries(real, tmp_path / "runs", {"a": [metrics], "b": [metrics]}), tmp_path / "page")
    html = page.read_text()
    table = html[html.index("<summary>More metrics") :].split("</details>")[0]
    assert all(f">{title}" in table for title in MORE["number"])
    assert "Spearman" not in html[: html.index("<summary>More metrics")]
    rows = list(csv.DictReader(io.StringIO((page.parent / "comparison.csv").read_text())))
    assert float(rows[0]["probe, MAE: mean"]) == metrics["val/mae"]
    assert float(rows[0]["probe, R²: mean"]) == metrics["val/r2"]


def test_real_probe_of_a_number_beside_those_of_classes(real, tmp_path):
    images = write_images(tmp_path / "images", 40)
    ink = [f"{path.name},{np.asarray(Image.open(path).convert('L')).mean():.3f}" for path in images]
    keys = {
        **TINY_CLASSIFIER,
        "DATA.name": "folder",
        "DATA.path": tmp_path / "images",
        "DATA.val_share": 0.25,
        "LABELS.file": write_table(tmp_path, "path,ink", ink),
        "LABELS.per_class": 0,
        "CRITERION.name": "mse",
        "INIT.checkpoint": real.pretraining,
    }
    code, text = call(tmp_path / "ink", keys, PROBE)
    assert code == 0, text
    result = compared(real.pretraining, real.probe, tmp_path / "ink")
    (entry,) = result.entries
    r2 = read_json(tmp_path / "ink" / "summary.json")["val/r2"]
    assert values_of(result, "linear probe, R²") == {entry.name: (r2,)}
    assert titles(result) == {"linear-probe, top-1", "fine-tuning, top-1", "linear probe, R²"}
    assert (result.left_out, result.warnings) == ((), ())
