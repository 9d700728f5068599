"""Metrics of held-out labels as they are shown, and what a summary says of the kind of its labels."""

import pytest
from collecting import answered, result_of

from mim.evaluation.metrics import CHOSEN_BY
from mim.lab.label_metrics import METRICS, kind_of, metrics_in


@pytest.mark.parametrize(("kind", "chosen_by"), CHOSEN_BY.items())
def test_first_metric_is_the_one_that_chooses(kind, chosen_by):
    assert METRICS[kind][0].key == chosen_by


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_that_evaluation_computes_is_shown_and_tells_the_kind(kind):
    metrics = result_of(kind, answered(kind, 6, 30), 6, resamples=0).metrics
    assert {metric.key for metric in metrics_in(metrics)} == metrics.keys() - {"val/loss"}
    assert all(metric.in_unit(metrics[metric.key]) <= metric.most for metric in METRICS[kind])
    assert kind_of(metrics) == kind
    without_main = metrics.keys() - {CHOSEN_BY[kind]}
    assert kind_of(without_main) == kind


@pytest.mark.parametrize(("keys", "kind"), [(["val/top1", "val/loss"], "class"), (["val/loss", "val/samples"], None)])
def test_kind_of_a_summary_of_0_1_0_and_of_none(keys, kind):
    assert kind_of(keys) == kind


def test_shares_are_percent_and_errors_are_as_they_stand():
    summary = {"val/r2": 0.5, "val/mae": 3.0}
    assert [(m.unit, m.better, m.in_unit(summary[m.key])) for m in metrics_in(summary)] == [
        ("", "higher", 0.5),
        ("", "lower", 3.0),
    ]
    (iou,) = metrics_in({"val/miou": 0.25})
    assert (iou.unit, iou.better, iou.in_unit(0.25)) == ("%", "higher", 25.0)
