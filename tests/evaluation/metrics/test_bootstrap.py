"""Intervals: those of a plain loop over resamples, the same on any number of ranks, and narrow where they should be."""

import time

import numpy as np
import pytest
import torch
from collecting import answered, collect, result_of, spec_of
from sklearn import metrics as sk

from mim.engine.distributed.world import World
from mim.evaluation.metrics import collector_for
from mim.evaluation.metrics.bootstrap import Measured, resampled

KINDS = ("class", "classes", "number", "mask")
KEYS = {
    "class": ("top1", "balanced_accuracy", "macro_f1", "auroc", "calibration_error"),
    "classes": ("mean_ap", "auroc", "macro_f1"),
    "number": ("mae", "rmse", "r2", "spearman"),
    "mask": ("miou", "pixel_accuracy", "boundary_f1"),
}


def drawn_by_loop(groups_N: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """The images of each resample, one resample after another."""
    columns = np.concatenate(list(resampled(groups_N, resamples, seed)), axis=1)
    return [np.repeat(np.arange(len(groups_N)), column.astype(int)) for column in columns.T]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_percentiles_of_the_metrics_of_resampled_images(kind, grouped):
    answers, labels, losses = data = answered(kind, 3, 40)
    groups = np.arange(40) // (4 if grouped else 1)
    result = result_of(kind, data, 3, groups_N=groups if grouped else None, resamples=25, seed=5)
    values = [
        result_of(kind, (answers[drawn], labels[drawn], losses[drawn]), 3, resamples=0).metrics
        for drawn in drawn_by_loop(groups, 25, 5)
    ]
    for key in (*(f"val/{name}" for name in KEYS[kind]), "val/loss"):
        expected = np.percentile([value[key] for value in values], [2.5, 97.5])
        assert result.intervals[key] == pytest.approx(tuple(expected), rel=1e-9), key
        assert result.details()[f"{key}_interval"] == list(result.intervals[key])
    assert result.reasons == {}


def test_an_interval_of_top1_is_that_of_a_loop_of_scikit_learn():
    answers, labels, _ = data = answered("class", 4, 100)
    result, said = result_of("class", data, 4, resamples=200, seed=1), answers.argmax(dim=1).numpy()
    tops = [sk.accuracy_score(labels.numpy()[drawn], said[drawn]) for drawn in drawn_by_loop(np.arange(100), 200, 1)]
    assert result.intervals["val/top1"] == pytest.approx(tuple(np.percentile(tops, [2.5, 97.5])), rel=1e-12)
    low, high = result.intervals["val/top1"]
    assert low < result.metrics["val/top1"] < high
    assert high - low == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 100) ** 0.5, rel=0.35)


def test_every_resample_draws_as_many_groups_as_there_are_each_as_a_whole():
    groups = np.array([5, 9, 9, 2, 5, 9])
    weights_NR = np.concatenate(list(resampled(groups, 300, 0)), axis=1)
    assert np.array_equal(weights_NR[0], weights_NR[4])
    assert np.array_equal(weights_NR[1], weights_NR[2])
    assert (weights_NR[[0, 1, 3]].sum(axis=0) == 3).all()
    assert weights_NR.mean(axis=1) == pytest.approx([1.0] * 6, abs=0.15)


def test_groups_of_equal_images_give_wider_intervals_than_single_images():
    answers, labels, losses = (each.repeat_interleave(10, dim=0) for each in answered("class", 4, 30))
    single, grouped = (
        np.subtract(*result_of("class", (answers, labels, losses), 4, groups_N=groups).intervals["val/top1"][::-1])
        for groups in (None, np.arange(300) // 10)
    )
    assert grouped > 2.5 * single


def test_a_group_alone_gives_no_interval():
    result = result_of("class", answered("class", 3, 20), 3, groups_N=np.zeros(20))
    assert result.intervals == {}
    assert result.reasons["val/top1_interval"] == "it needs at least two groups"


def test_a_metric_that_few_resamples_define_has_no_interval():
    answers, _, losses = answered("class", 2, 3)
    result = result_of("class", (answers, torch.tensor([0, 1, 1]), losses), 2)
    assert "val/auroc" in result.intervals  # 1 - 2 (2/3)^3 = 70% of resamples have both classes
    measured = Measured(lambda weights_NR: {"key": np.where(weights_NR[0] > 1, 1.0, np.nan)}, 1)
    assert measured.intervals(np.arange(50), 100, 0) == {}


def test_what_would_take_too_long_gets_fewer_resamples_or_none():
    assert [Measured(lambda weights: {}, cost).resamples(1000) for cost in (10, 10**6, 10**7)] == [1000, 200, 0]


def test_ten_thousand_images_have_an_interval_of_top1_in_seconds():
    collector = collect(
        collector_for(spec_of("class", 10), torch.device("cpu"), 0),
        answered("class", 10, 10_000),
        list(range(10_000)),
        1000,
    )
    start = time.process_time()
    result = collector.result(World(0, 1, torch.device("cpu")))
    assert time.process_time() - start < 4
    assert "val/top1" in result.intervals
