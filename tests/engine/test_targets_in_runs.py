"""Targets with networks, lists of targets and several masks in whole runs: what they log, and that they resume."""

import shutil

import pytest
from processes import TINY, call, last_state, rows, same, summary, timeless_rows

SMALL = TINY | {
    **{"TRAIN.batch": 256, "DATA.batch_size": 128, "EVALUATE.knn": 0, "EVALUATE.samples": 24, "ENCODER.drop_path": 0.2},
    **{"LOG.every_steps": 3, "CHECKPOINT.every_minutes": 1e-6, "CHECKPOINT.keep": 9},  # a checkpoint at every step
}
FOLLOWER = "{name: follower, decay: 0.9, decay_end: 1.0, layers: 2, layer_norm: instance}"
CLUSTERS = "{name: clusters, clusters: 8, decay: 0.9}"
CASES = {
    "several": {
        "TARGET": "[{name: pixels}, {name: hog, cell: 4, weight: 0.5}, {name: fourier, weight: 0.25}]",
        "LOSS": "[{name: mse}, {name: l1}, {name: l1}]",
    },
    "follower": {"TARGET": FOLLOWER, "LOSS": "{name: smooth_l1}", "DATA.masks": 2},
    "clusters": {"TARGET": CLUSTERS, "LOSS": "{name: cross_entropy}"},
    "all": {
        "TARGET": f"[{{name: pixels}}, {FOLLOWER}, {CLUSTERS.replace('name', 'weight: 0.5, name')}]",
        "LOSS": "[{name: mse}, {name: mse}, {name: cross_entropy}]",
        "DATA.masks": 2,
        "TRAIN.ema": 0.9,
    },
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Makes the run of a case, once."""
    base, made = tmp_path_factory.mktemp("runs"), {}

    def run(case):
        if case not in made:
            code, text = call(base / case, SMALL | CASES[case])
            assert code == 0, text
            made[case] = base / case
        return made[case]

    return run


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case != "all")) for case in CASES])
def test_resumed_run_equals_the_undisturbed_one_to_the_bit(undisturbed, tmp_path, case):
    """From the middle of an epoch and of a log line: sums of metrics since the last row are in the checkpoint."""
    whole, output = undisturbed(case), tmp_path / "run"
    shutil.copytree(whole, output)
    (output / "checkpoints" / "last").write_text("step-2.pt\n")
    (output / "summary.json").unlink()
    code, text = call(output, SMALL | CASES[case])
    assert code == 0, text
    assert "at step 2 of 5" in text
    ours, theirs = last_state(output), last_state(whole)
    for part in ("model", "ema", "optimizer", "meter", "results"):
        same(ours[part], theirs[part], part)
    assert timeless_rows(output) == timeless_rows(whole)


@pytest.mark.parametrize("case", [pytest.param("several", marks=pytest.mark.slow), "all"])
def test_run_logs_the_loss_of_each_target(undisturbed, case):
    run = undisturbed(case)
    weights = {
        "several": {"pixels": 1, "hog": 0.5, "fourier": 0.25},
        "all": {"pixels": 1, "follower": 1, "clusters": 0.5},
    }
    trained, judged = ([row for row in rows(run) if f"{part}/loss" in row] for part in ("train", "val"))
    assert len(trained) == 2
    assert len(judged) == 1
    for part, each in (("train", trained), ("val", judged)):
        for row in each:
            total = sum(weight * row[f"{part}/loss_{name}"] for name, weight in weights[case].items())
            assert row[f"{part}/loss"] == pytest.approx(total + row.get(f"{part}/target_loss", 0), rel=1e-6)
    values = summary(run)
    assert all(values[key] == value for key, value in judged[0].items() if key.startswith("val/"))
    assert ("train/target_loss" in trained[0]) == (case == "all")
    assert "val/target_loss" not in judged[0]
    if case == "all":
        assert {"val/target_std_follower", "val/target_rank_follower", "val/target_rank_clusters"} <= values.keys()


def test_images_are_counted_once_however_many_masks_they_have(undisturbed):
    values = summary(undisturbed("all"))
    assert values["images_seen"] == 5 * 256
    assert rows(undisturbed("all"))[-1]["images_seen"] == 5 * 256


@pytest.mark.slow
def test_compiled_run_has_the_losses_of_the_other(undisturbed, tmp_path):
    """Networks of targets, and what their layers learn, are outside of the graph of the student."""
    code, text = call(tmp_path, SMALL | CASES["all"] | {"TRAIN.compile": True})
    assert code == 0, text
    for row, other in zip(rows(tmp_path), rows(undisturbed("all")), strict=True):
        for key, value in other.items():
            if key.startswith(("train/loss", "train/target", "val/loss")):
                assert row[key] == pytest.approx(value, rel=1e-3), key
