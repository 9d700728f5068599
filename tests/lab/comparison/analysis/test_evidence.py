"""What a comparison says of numbers that cannot bear it: few seeds, no better than random weights, not separated."""

import pytest
from run_folders import Real, real_runs, write_run

from mim.lab.comparison import compare
from mim.lab.comparison.result import Comparison


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def compared(real, folder, knn=None, random=0.2, probes=None) -> Comparison:
    """Entries with a kNN accuracy and a probe's for each seed; `scratch` are probes of random weights."""
    for number, (name, values) in enumerate((knn or {}).items()):
        for seed, value in enumerate(values):
            keys, metrics = (
                {"SEED": seed, "MASKER.ratio": 0.75 - 0.25 * number},
                {"knn/top1": value, "knn/top1_at_start": random},
            )
            write_run(folder / "pretraining" / f"{name}-seed{seed}", real.pretraining, keys, metrics)
    for name, values in (probes or {}).items():
        for seed, value in enumerate(values):
            start = None if name == "scratch" else folder / "pretraining" / f"{name}-seed{seed}"
            write_run(
                folder / "linear-probe" / f"{name}-seed{seed}",
                real.probe,
                {"SEED": seed},
                {"val/top1": value},
                start=start,
            )
    return compare([folder], reconstructions=False)


CLEAR = {"a": (0.90, 0.91, 0.92), "b": (0.80, 0.815, 0.82)}


def test_clear_results_of_three_seeds_need_no_word(real, tmp_path):
    result = compared(real, tmp_path, CLEAR)
    assert result.evidence == ()
    assert result.best["knn/top1"] == "a"


def test_one_and_two_seeds_are_told(real, tmp_path):
    one = compared(real, tmp_path / "one", {"a": (0.9,), "b": (0.8,)})
    (line,) = one.evidence
    assert "One seed of each entry" in line
    two = compared(real, tmp_path / "two", {"a": (0.9, 0.91), "b": (0.8, 0.812)})
    (line,) = two.evidence
    assert "Two seeds of each entry" in line
    assert "six times" in line
    assert "knn/top1" not in one.best  # which would be chance


def test_entries_that_are_not_separated_are_named(real, tmp_path):
    result = compared(real, tmp_path, {**CLEAR, "c": (0.91, 0.90, 0.925)})
    (line,) = result.evidence
    assert "kNN does not separate a and c" in line
    assert "knn/top1" not in result.best
    alike = compared(real, tmp_path / "alike", dict.fromkeys("abc", (0.5, 0.6, 0.7)))
    (line,) = [each for each in alike.evidence if "separates" in each]
    assert "kNN separates no two entries" in line
    assert "all 3 paired tests" in line


def test_knn_that_is_no_better_than_that_of_random_weights_is_told(real, tmp_path):
    result = compared(real, tmp_path, {"a": (0.21, 0.22, 0.212), "b": (0.80, 0.815, 0.82)}, random=0.23)
    assert "kNN is no better than that of random weights: a 21.4 beside 23.0." in result.evidence
    near = compared(real, tmp_path / "near", {"a": (0.25, 0.30, 0.22), "b": (0.80, 0.815, 0.82)}, random=0.23)
    assert "kNN is not separated from that of random weights: a 25.7 beside 23.0." in near.evidence


def test_knn_without_a_value_of_random_weights_says_how_to_get_one(real, tmp_path):
    result = compared(real, tmp_path, CLEAR, random=None)
    (line,) = result.evidence
    assert "unknown in a and b" in line
    assert "EVALUATE.at_start true" in line


def test_probes_stand_beside_those_of_random_weights(real, tmp_path):
    probes = {"a": (0.5, 0.51, 0.52), "b": (0.7, 0.71, 0.72), "scratch": (0.6, 0.612, 0.621)}
    result = compared(real, tmp_path, CLEAR, probes=probes)
    (line,) = result.evidence
    assert "Linear-probe is no better" in line
    assert "a 51.0 beside 61.1." in line  # and not b
    assert [(entry.name, entry.random) for entry in result.entries] == [("a", False), ("b", False), ("scratch", True)]
    assert result.best["transfer/1"] == "b"


def test_probe_without_random_weights_says_so(real, tmp_path):
    result = compared(real, tmp_path, CLEAR, probes={"a": (0.5, 0.51, 0.52), "b": (0.7, 0.71, 0.72)})
    (line,) = result.evidence
    assert "Linear-probe has no row of random weights" in line
    assert "an empty INIT.checkpoint" in line
