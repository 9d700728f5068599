"""What a comparison says of metrics: means, intervals, tests, budgets and curves, by hand-made runs of known values."""

import json
import math
import random

import pytest
from run_folders import Real, real_runs, write_run
from scipy import stats

from mim.lab.comparison import compare
from mim.lab.comparison.analysis.curves import MOST
from mim.lab.comparison.result import Comparison, Entry


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def compared(*folders, **keys) -> Comparison:
    return compare(folders, reconstructions=False, **keys)


def entry(comparison: Comparison, name: str) -> Entry:
    return next(result for result in comparison.entries if result.name == name)


def seeds(real, folder, name, values, settings=None, metric="knn/top1"):
    """A run for each seed with a metric of that seed."""
    return [
        write_run(folder / f"{name}-seed{seed}", real.pretraining, {"SEED": seed, **(settings or {})}, {metric: value})
        for seed, value in values.items()
    ]


def test_comparison_means_and_intervals_are_those_of_scipy(real, tmp_path):
    values = {0: 0.91, 1: 0.87, 2: 0.95, 3: 0.93}
    losses = {seed: 0.3 + value / 10 for seed, value in values.items()}
    for seed in values:
        metrics = {"knn/top1": values[seed], "val/loss": losses[seed]}
        write_run(tmp_path / f"a-seed{seed}", real.pretraining, {"SEED": seed}, metrics)
    result = compared(tmp_path)
    assert [(one.name, one.seeds) for one in result.entries] == [("a", (0, 1, 2, 3))]
    for key, factor, of in (("knn/top1", 100, values), ("val/loss", 1, losses)):
        sample = [factor * value for value in of.values()]
        metric = result.entries[0].metrics[key]
        low, high = stats.t.interval(0.95, len(sample) - 1, loc=sum(sample) / len(sample), scale=stats.sem(sample))
        assert metric.runs == 4
        assert metric.mean - metric.half == pytest.approx(low)
        assert metric.mean + metric.half == pytest.approx(high)
        assert result.entries[0].values[key] == pytest.approx(sample)


def test_comparison_of_one_run_has_metrics_without_intervals(real, tmp_path):
    result = compared(write_run(tmp_path / "only", real.pretraining, metrics={"knn/top1": 0.5}))
    metric = result.entries[0].metrics["knn/top1"]
    assert (metric.mean, metric.half, metric.runs) == (50, None, 1)
    assert (result.settings, result.warnings, result.tests, result.budgets) == ((), (), (), ())
    assert {column.section for column in result.columns} == {"accuracy", "loss", "cost"}
    assert result.title == "only"


def test_comparison_metrics_are_in_the_units_of_their_columns(real, tmp_path):
    metrics = {"images_seen": 1000, "flops_per_image": 2e6, "peak_memory_bytes": 2**30, "seconds": 60.0, "steps": 50}
    result = compared(write_run(tmp_path / "only", real.pretraining, metrics=metrics))
    units = {column.key: column.unit for column in result.columns}
    means = {key: metric.mean for key, metric in result.entries[0].metrics.items()}
    assert (units["training_flops"], means["training_flops"]) == ("FLOP", 2e9)
    assert (units["peak_memory_bytes"], means["peak_memory_bytes"]) == ("B", 2**30)
    assert (units["seconds"], means["seconds"]) == ("s", 60)
    assert set(means) == set(units)


def test_comparison_pairs_seeds_whatever_the_order_of_folders(real, tmp_path):
    first = {5: 0.2, 1: 0.6, 3: 0.9, 7: 0.4}
    second = {3: 0.8, 7: 0.35, 9: 0.1, 5: 0.22}  # 1 and 9 have no partner
    folders = seeds(real, tmp_path, "a", first) + seeds(real, tmp_path, "b", second, {"MASKER.ratio": 0.5})
    result = compared(*folders[::-1])
    test = next(test for test in result.tests if test.column == "knn/top1")
    assert test.seeds == (3, 5, 7)
    assert (test.first, test.second) == ("b", "a")
    expected = stats.ttest_rel([80, 22, 35], [90, 20, 40])
    assert test.result.p == pytest.approx(expected.pvalue)
    assert test.result.difference.mean == pytest.approx((-10 + 2 - 5) / 3)
    interval = expected.confidence_interval(0.95)
    assert test.result.difference.mean - test.result.difference.half == pytest.approx(interval.low)


def test_comparison_tests_nothing_where_fewer_than_two_seeds_are_shared(real, tmp_path):
    folders = seeds(real, tmp_path, "a", {0: 0.5, 1: 0.6}) + seeds(
        real, tmp_path, "b", {1: 0.5, 2: 0.6}, {"HEAD.depth": 2}
    )
    assert compared(*folders).tests == ()


def test_comparison_tests_losses_only_where_they_are_of_one_kind(real, tmp_path):
    values = {0: 0.5, 1: 0.6}
    seeds(real, tmp_path, "a", values)
    seeds(real, tmp_path, "b", values, {"OPTIMIZER.weight_decay": 0.1})
    like = compared(tmp_path)
    column = next(column for column in like.columns if column.key == "val/loss")
    assert (column.better, column.note) == ("lower", "")
    assert "val/loss" in {test.column for test in like.tests}
    seeds(real, tmp_path, "c", values, {"MASKER.ratio": 0.5})
    unlike = compared(tmp_path)
    column = next(column for column in unlike.columns if column.key == "val/loss")
    assert column.better == "neither"
    assert "MASKER.ratio differs" in column.note
    assert "val/loss" not in {test.column for test in unlike.tests}


def test_comparison_tests_many_entries_against_the_first_alone(real, tmp_path):
    for number in range(7):
        seeds(real, tmp_path, f"run{number}", {0: 0.5, 1: 0.5 + number / 100}, {"OPTIMIZER.weight_decay": number / 100})
    result = compared(tmp_path)
    assert {(test.first, test.second) for test in result.tests} == {("run0", f"run{number}") for number in range(1, 7)}
    assert any("against run0" in note for note in result.notes)


# ---------------------------------------------------------------- curves and budgets


def rows_of(images_seen, values):
    """Evaluations at numbers of images, a second each hundred images."""
    pairs = zip(images_seen, values, strict=True)
    return [{"epoch": 1.0, "images_seen": at, "seconds": at / 100, "knn/top1": value} for at, value in pairs]


def test_budgets_never_look_ahead(real, tmp_path):
    random.seed(0)
    for trial in range(5):
        runs = {}
        for name in ("a", "b"):
            images_seen = sorted(random.sample(range(50, 2000), random.randint(5, 40)))
            runs[name] = rows_of(images_seen, [at / 10000 + random.random() / 2 for at in images_seen])
        folder = tmp_path / str(trial)
        for number, (name, rows) in enumerate(runs.items()):
            write_run(
                folder / name, real.pretraining, {"OPTIMIZER.weight_decay": number}, {"flops_per_image": 10}, rows=rows
            )
        result = compared(folder)
        least = min(rows[-1]["images_seen"] for rows in runs.values())
        scale = {"images_seen": 1, "flops": 10, "seconds": 0.01}
        assert {budget.axis for budget in result.budgets} == set(scale)
        for budget in result.budgets:
            assert budget.limit / scale[budget.axis] in [pytest.approx(share * least) for share in (0.25, 0.5, 1)]
            for name, reached in budget.estimates.items():
                limit = budget.limit / scale[budget.axis] + 1e-6
                last = [row for row in runs[name] if row["images_seen"] <= limit][-1]
                assert reached.mean == pytest.approx(100 * last["knn/top1"])
                assert last["images_seen"] > limit / 2


def test_budgets_are_means_over_seeds_of_the_last_evaluation(real, tmp_path):
    for name, decay in (("a", 0.0), ("b", 0.1)):
        for seed, top in ((0, 0.5), (1, 0.7)):
            rows = rows_of([0, 250, 500, 990], [0.9, 0.8, top, 0.1])
            write_run(
                tmp_path / f"{name}-seed{seed}",
                real.pretraining,
                {"SEED": seed, "OPTIMIZER.weight_decay": decay},
                rows=rows,
            )
    result = {(budget.axis, budget.limit): budget for budget in compared(tmp_path).budgets}
    half = result["images_seen", 495].estimates["a"]
    assert half.mean == pytest.approx(80)
    assert result["images_seen", 990].estimates["b"].mean == pytest.approx(10)  # the last one, not the best


def test_budgets_leave_out_what_was_evaluated_too_rarely_and_say_so(real, tmp_path):
    for name, decay in (("a", 0.0), ("b", 0.1)):
        rows = rows_of([0, 1000], [0.1, 0.9])
        write_run(tmp_path / name, real.pretraining, {"OPTIMIZER.weight_decay": decay}, rows=rows)
    result = compared(tmp_path)
    assert {budget.limit for budget in result.budgets if budget.axis == "images_seen"} == {1000}
    assert any("25% and 50% of the images" in note for note in result.notes)


def test_curves_have_the_axes_that_a_run_tells_of(real, tmp_path):
    rows = [{"images_seen": 32 * step, "train/loss": 1 / step, "seconds": step / 4} for step in range(1, 5)]
    old = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    write_run(tmp_path / "new", real.pretraining, {"SEED": 3}, {"flops_per_image": 7}, rows=rows)
    write_run(tmp_path / "old", real.pretraining, {"HEAD.depth": 2}, {"flops_per_image": 5}, rows=old)
    curves = {curve.entry: curve for curve in compared(tmp_path).curves}
    assert curves["new"].at == {
        "images_seen": (32, 64, 96, 128),
        "flops": (224, 448, 672, 896),
        "seconds": (0.25, 0.5, 0.75, 1),
    }
    assert curves["new"].values == (1, 1 / 2, 1 / 3, 1 / 4)
    assert curves["new"].seed == 3
    assert set(curves["old"].at) == {"images_seen", "flops"}


def test_curves_of_accuracies_are_in_percent(real, tmp_path):
    write_run(tmp_path / "a", real.pretraining, rows=rows_of([10, 20], [0.25, 0.5]))
    (curve,) = compared(tmp_path).curves
    assert curve.values == (25, 50)


def test_long_curves_are_means_over_equal_spans(real, tmp_path):
    rows = [{"images_seen": step, "train/loss": math.sin(step)} for step in range(1, 7 * MOST + 1)]
    write_run(tmp_path / "a", real.pretraining, rows=rows)
    (curve,) = compared(tmp_path).curves
    assert len(curve.values) == MOST
    assert curve.at["images_seen"] == tuple(range(7, 7 * MOST + 1, 7))
    assert curve.values[1] == pytest.approx(sum(math.sin(step) for step in range(8, 15)) / 7)


def test_curve_and_metrics_of_the_real_run_are_those_in_its_folder(real):
    result = compared(real.pretraining)
    summary = json.loads((real.pretraining / "summary.json").read_text())
    rows = [json.loads(line) for line in (real.pretraining / "metrics.jsonl").read_text().splitlines()]
    training = next(curve for curve in result.curves if curve.metric == "train/loss")
    assert training.values == tuple(row["train/loss"] for row in rows if "train/loss" in row)
    assert training.at["seconds"][-1] <= summary["seconds"] + 0.01
    assert result.entries[0].metrics["knn/top1"].mean == 100 * summary["knn/top1"]
    assert {column.title for column in result.columns} >= {"kNN", "linear-probe", "fine-tuning"}
