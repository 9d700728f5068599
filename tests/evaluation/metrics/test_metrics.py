"""Metrics: the values of scikit-learn, SciPy and torchmetrics, with unknown labels and absent classes."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from collecting import ALONE, CPU, answered, collect, result_of, spec_of
from scipy.stats import spearmanr
from sklearn import metrics as sk

from mim.evaluation.metrics import CHOSEN_BY, collector_for
from mim.evaluation.metrics.ranking import auroc, average_precision, spearman
from mim.metric_keys import VAL_BY_CLASS, VAL_BY_COLUMN, VAL_SAMPLES, VAL_UNDEFINED

KINDS = ("class", "classes", "number", "mask")
NONE = {"resamples": 0}


@pytest.fixture
def tm():
    """torchmetrics, whose import takes seconds."""
    return importlib.import_module("torchmetrics.functional")


def close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours == pytest.approx(theirs, rel=1e-9)


# ---------------------------------------------------------------- one class


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_metrics_of_one_class_equal_scikit_learn_and_torchmetrics(tm, classes):
    answers, labels, losses = data = answered("class", classes, 300)
    result, share, said = result_of("class", data, classes, **NONE), answers.numpy(), answers.argmax(dim=1).numpy()
    truth = labels.numpy()
    expected = {
        "val/top1": sk.accuracy_score(truth, said),
        "val/balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "val/macro_f1": sk.f1_score(truth, said, average="macro"),
        "val/auroc": sk.roc_auc_score(truth, share[:, 1] if classes == 2 else share, multi_class="ovr"),
        "val/calibration_error": tm.calibration_error(
            answers, labels, "multiclass", n_bins=15, num_classes=classes
        ).item(),
        "val/loss": losses.double().mean().item(),
    }
    if classes > 5:
        expected["val/top5"] = sk.top_k_accuracy_score(truth, share, k=5)
    assert result.metrics.keys() == expected.keys()
    assert result.metrics.pop("val/calibration_error") == pytest.approx(expected.pop("val/calibration_error"), rel=1e-5)
    close(result.metrics, expected)
    assert np.array_equal(result.confusion_KK, sk.confusion_matrix(truth, said))
    assert result.confusion_KK.dtype == torch.int64
    recalls = sk.recall_score(truth, said, average=None)
    close(result.by_name[VAL_BY_CLASS], dict(zip(spec_of("class", classes).names, recalls, strict=True)))
    assert (result.samples, result.reasons, result.intervals) == (300, {}, {})


def test_classes_that_no_held_out_image_shows_are_named_and_not_counted():
    answers, labels, losses = answered("class", 5, 200)
    labels[labels == 3] = 2
    result, said = result_of("class", (answers, labels, losses), 5, **NONE), answers.argmax(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of a class that is answered and never true
        balanced = sk.balanced_accuracy_score(labels, said)
        areas = [sk.roc_auc_score(labels == k, answers[:, k]) for k in (0, 1, 2, 4)]
    assert result.metrics["val/balanced_accuracy"] == pytest.approx(balanced)
    assert result.metrics["val/macro_f1"] == pytest.approx(sk.f1_score(labels, said, average="macro"))
    assert result.metrics["val/auroc"] == pytest.approx(np.mean(areas))
    assert result.reasons["val/auroc"] == "without classes that no held-out image shows: n3"
    assert "n3" not in result.by_name[VAL_BY_CLASS]


@pytest.mark.parametrize("classes", [2, 4])
def test_auroc_of_one_class_alone_is_left_out_with_the_reason(classes):
    answers, labels, losses = answered("class", classes, 50)
    result = result_of("class", (answers, torch.ones_like(labels), losses), classes)
    assert "val/auroc" not in result.metrics
    assert result.reasons["val/auroc"] == "all held-out images are of one class, n1"
    assert result.metrics["val/top1"] == (answers.argmax(dim=1) == 1).double().mean()
    assert all(map(math.isfinite, result.metrics.values()))
    assert result.details()[VAL_UNDEFINED] == result.reasons


@pytest.mark.parametrize("most", [0, 399])
def test_scores_above_the_bound_are_dropped_and_auroc_is_left_out_with_the_reason(most):
    data = answered("class", 4, 100)
    collector = collect(collector_for(spec_of("class", 4), CPU, most_values=most), data, list(range(100)))
    assert not collector._parts["scores"]
    result = collector.result(ALONE)
    whole = result_of("class", data, 4)
    assert result.metrics == {key: value for key, value in whole.metrics.items() if key != "val/auroc"}
    assert result.intervals == {key: ends for key, ends in whole.intervals.items() if key != "val/auroc"}
    assert result.reasons["val/auroc"].startswith(f"the scores of 100 images are more than the {most} values")


def test_scores_up_to_the_bound_are_kept():
    data = answered("class", 4, 100)
    collector = collect(collector_for(spec_of("class", 4), CPU, most_values=400), data, list(range(100)))
    assert "val/auroc" in collector.result(ALONE).metrics


# ---------------------------------------------------------------- several classes


def test_metrics_of_several_classes_equal_scikit_learn_and_torchmetrics(tm):
    answers, labels, _ = data = answered("classes", 6, 200)
    result, truth, share = result_of("classes", data, 6, **NONE), labels.numpy(), answers.numpy()
    close(
        {key: value for key, value in result.metrics.items() if key != "val/loss"},
        {
            "val/mean_ap": sk.average_precision_score(truth, share, average="macro"),
            "val/auroc": sk.roc_auc_score(truth, share, average="macro"),
            "val/macro_f1": sk.f1_score(truth, share > 0.5, average="macro"),
        },
    )
    theirs = tm.classification.multilabel_average_precision(answers, labels.long(), 6)
    assert result.metrics["val/mean_ap"] == pytest.approx(theirs.item(), rel=1e-5)
    each = sk.average_precision_score(truth, share, average=None)
    close(result.by_name[VAL_BY_CLASS], dict(zip(spec_of("classes", 6).names, each, strict=True)))


def test_several_classes_without_true_or_untrue_images_are_named():
    answers, labels, losses = answered("classes", 4, 60)
    labels[:, 1], labels[:, 2] = 0, 1
    result = result_of("classes", (answers, labels, losses), 4, **NONE)
    precisions = [sk.average_precision_score(labels[:, k], answers[:, k]) for k in (0, 2, 3)]
    areas = [sk.roc_auc_score(labels[:, k], answers[:, k]) for k in (0, 3)]
    assert result.metrics["val/mean_ap"] == pytest.approx(np.mean(precisions))
    assert result.metrics["val/auroc"] == pytest.approx(np.mean(areas))
    assert result.reasons["val/mean_ap"] == "without classes that no held-out image has: n1"
    assert result.reasons["val/auroc"] == "without classes that all or no held-out images have: n1, n2"


def test_a_class_that_is_unknown_for_an_image_is_judged_on_the_others():
    answers, labels, losses = answered("classes", 3, 80)
    labels[:30, 1] = float("nan")
    result = result_of("classes", (answers, labels, losses), 3, **NONE)
    rows = {0: slice(None), 1: slice(30, None), 2: slice(None)}
    areas = [sk.roc_auc_score(labels[rows[k], k], answers[rows[k], k]) for k in range(3)]
    scores = [sk.f1_score(labels[rows[k], k].numpy(), answers[rows[k], k].numpy() > 0.5) for k in range(3)]
    assert result.metrics["val/auroc"] == pytest.approx(np.mean(areas))
    assert result.metrics["val/macro_f1"] == pytest.approx(np.mean(scores))


def test_several_classes_above_the_bound_keep_f1():
    data = answered("classes", 4, 60)
    collector = collect(collector_for(spec_of("classes", 4), CPU, most_values=100), data, list(range(60)))
    result = collector.result(ALONE, **NONE)
    assert result.metrics["val/macro_f1"] == result_of("classes", data, 4, **NONE).metrics["val/macro_f1"]
    assert result.metrics.keys() == {"val/macro_f1", "val/loss"}
    assert {"val/mean_ap", "val/auroc"} <= result.reasons.keys()


# ---------------------------------------------------------------- numbers


def test_metrics_of_numbers_equal_scikit_learn_and_scipy():
    answers, labels, losses = answered("number", 3, 150)
    labels[:40, 1] = float("nan")
    result = result_of("number", (answers, labels, losses), 3, **NONE)
    columns = {}
    for number in range(3):
        known = ~labels[:, number].isnan()
        truth, said = labels[known, number].double().numpy(), answers[known, number].numpy()
        columns[f"n{number}"] = {
            "mae": sk.mean_absolute_error(truth, said),
            "rmse": sk.root_mean_squared_error(truth, said),
            "r2": sk.r2_score(truth, said),
            "spearman": spearmanr(truth, said).statistic,
        }
    for name, values in columns.items():
        close(result.by_name[VAL_BY_COLUMN][name], values)
    for name in ("mae", "rmse", "r2", "spearman"):
        assert result.metrics[f"val/{name}"] == pytest.approx(np.mean([values[name] for values in columns.values()]))
    assert result.details()[VAL_SAMPLES] == 150


def test_numbers_that_are_all_equal_have_no_r2_and_no_correlation():
    answers, labels, losses = answered("number", 2, 40)
    labels[:, 1] = 0.1
    result = result_of("number", (answers, labels, losses), 2, **NONE)
    assert result.metrics["val/r2"] == pytest.approx(sk.r2_score(labels[:, 0].numpy(), answers[:, 0].numpy()))
    assert result.reasons["val/r2"] == "without columns whose labels or answers are all equal: n1"
    assert result.by_name[VAL_BY_COLUMN]["n1"].keys() == {"mae", "rmse"}
    alone = result_of("number", (answers[:, 1:], labels[:, 1:], losses), 1)
    assert alone.metrics.keys() == {"val/mae", "val/rmse", "val/loss"}
    assert {"val/r2", "val/spearman"} <= alone.reasons.keys()


# ---------------------------------------------------------------- masks


def test_metrics_of_masks_equal_torchmetrics_and_scikit_learn(tm):
    answers, labels, losses = answered("mask", 4, 20)
    labels[torch.rand(labels.shape) < 0.2] = -1
    labels[3] = -1
    result = result_of("mask", (answers, labels, losses), 4, **NONE)
    known, said = labels >= 0, answers.argmax(dim=1)
    overlap = tm.classification.multiclass_jaccard_index(said, labels, 4, average="none", ignore_index=-1)
    assert result.metrics["val/miou"] == pytest.approx(overlap.double().mean().item(), rel=1e-6)
    assert result.metrics["val/pixel_accuracy"] == sk.accuracy_score(labels[known], said[known])
    assert list(result.by_name[VAL_BY_CLASS].values()) == pytest.approx(overlap.tolist(), rel=1e-6)
    assert np.array_equal(result.confusion_KK, sk.confusion_matrix(labels[known], said[known]))
    assert result.samples == 19


def test_masks_may_come_as_answered_classes():
    answers, labels, losses = answered("mask", 4, 9)
    assert result_of("mask", (answers.argmax(dim=1), labels, losses), 4).metrics == (
        result_of("mask", (answers, labels, losses), 4).metrics
    )


def test_a_class_of_no_pixel_is_no_part_of_miou_and_one_that_is_only_answered_is():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    said = torch.tensor([[[0, 2, 1, 1]]])
    result = result_of("mask", (said, labels, torch.zeros(1)), 5)
    assert result.metrics["val/miou"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert result.by_name[VAL_BY_CLASS] == {"n0": 0.5, "n1": 1.0, "n2": 0.0}
    assert result.reasons["val/miou"] == "without classes that no held-out pixel has: n3, n4"


def test_masks_above_the_bound_have_the_same_metrics_and_no_interval():
    data = answered("mask", 3, 12)
    collector = collect(collector_for(spec_of("mask", 3), CPU, most_values=50), data, list(range(12)))
    result, whole = collector.result(ALONE), result_of("mask", data, 3)
    close(result.metrics, whole.metrics)
    assert whole.intervals.keys() - result.intervals.keys() == {"val/miou", "val/pixel_accuracy"}
    assert {"val/miou_interval", "val/pixel_accuracy_interval"} <= result.reasons.keys()


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_labels_are_not_counted(kind):
    answers, labels, losses = answered(kind, 3, 60)
    known = torch.rand(60) < 0.7
    expected = result_of(kind, (answers[known], labels[known], losses[known]), 3, **NONE)
    labels[~known] = float("nan") if labels.is_floating_point() else -1
    result = result_of(kind, (answers, labels, losses), 3, **NONE)
    close(result.metrics, expected.metrics)
    assert result.samples == known.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_that_chooses_is_there_and_better_answers_raise_it(kind):
    answers, labels, losses = answered(kind, 3, 60)
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) if kind in ("class", "mask") else labels
    key, mixed = CHOSEN_BY[kind], 0.3 * right + 0.7 * answers
    worse, better, best = (
        result_of(kind, (each, labels, losses), 3, **NONE).metrics[key] for each in (answers, mixed, right.double())
    )
    assert worse < better <= best == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_there_is_no_metric_and_a_reason(kind):
    result = collector_for(spec_of(kind, 3), CPU).result(ALONE)
    assert (result.samples, result.metrics, result.intervals) == (0, {}, {})
    assert result.reasons == {"val/loss": "no held-out image has a label"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_has_metrics_and_no_interval(kind):
    result = result_of(kind, answered(kind, 3, 1), 3)
    assert result.metrics["val/loss"] == pytest.approx(answered(kind, 3, 1)[2].item())
    assert result.intervals == {}
    assert result.reasons["val/loss_interval"] == "it needs at least two images"


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
def test_answers_that_are_not_finite_give_no_metric_that_is_not(kind):
    answers, labels, losses = answered(kind, 3, 30)
    answers[4], losses[4] = float("nan"), float("nan")
    result = result_of(kind, (answers, labels, losses), 3)
    assert all(map(math.isfinite, result.metrics.values()))
    left_out = {"class": "val/auroc", "classes": "val/mean_ap", "number": "val/r2"}[kind]
    assert {left_out, "val/loss"} <= result.reasons.keys()
    assert not {left_out, "val/loss"} & (result.metrics.keys() | result.intervals.keys())


def test_ranking_metrics_of_weights_are_those_of_images_that_occur_so_often():
    generator = np.random.default_rng(0)
    scores, true = generator.integers(8, size=60) / 8, generator.random(60) < 0.4
    other, weights = generator.integers(6, size=60), generator.integers(4, size=(60, 5)).astype(float)
    for column in range(5):
        drawn = np.repeat(np.arange(60), weights[:, column].astype(int))
        assert auroc(scores, true, weights)[column] == pytest.approx(sk.roc_auc_score(true[drawn], scores[drawn]))
        assert average_precision(scores, true, weights)[column] == pytest.approx(
            sk.average_precision_score(true[drawn], scores[drawn])
        )
        assert spearman(scores, other, weights)[column] == pytest.approx(
            spearmanr(scores[drawn], other[drawn]).statistic
        )
