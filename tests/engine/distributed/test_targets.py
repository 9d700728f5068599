"""Targets with networks on two processes, as replicas and in shards: losses, weights and metrics of one process."""

import shutil

import pytest
import torch
from processes import RECIPE, TINY, call, last_state, losses, rows, summary

from mim import build_model
from mim.build import load_config
from mim.engine import checkpoint

KEYS = TINY | {
    **{"TRAIN.batch": 256, "DATA.batch_size": 64, "OPTIMIZER.base_lr": 0.004, "EVALUATE.samples": 30},
    **{"TRAIN.epochs": 2, "EVALUATE.at_start": True, "DISTRIBUTED.device": "cpu"},
}
FOLLOWER = "{name: follower, decay: 0.5, decay_end: 0.9, layers: 2, layer_norm: instance}"
CLUSTERS = "{name: clusters, clusters: 8, decay: 0.5}"
CASES = {
    "follower": {"TARGET": FOLLOWER, "TRAIN.ema": 0.9, "TRAIN.clip": 1.0},
    "clusters": {"TARGET": CLUSTERS, "LOSS": "{name: cross_entropy}", "TRAIN.activation_checkpointing": True},
    "several": {
        "TARGET": f"[{{name: pixels}}, {FOLLOWER}, {CLUSTERS}]",
        "LOSS": "[{name: mse}, {name: smooth_l1}, {name: cross_entropy}]",
        "DATA.masks": 2,
    },
}
TEACHER = {"TARGET.name": "teacher", "MASKER.name": "semantic", "LOSS.name": "cosine", "DATA.masks": 2}
HALF = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory, warm):
    """Makes the run of a case by a strategy, once; each keeps the checkpoint of the first epoch."""
    base, made = tmp_path_factory.mktemp("runs"), {}
    cfg = load_config(RECIPE, [str(word) for pair in (TINY | {"ENCODER.width": 8}).items() for word in pair])
    state = build_model(cfg).state_dict()
    checkpoint.write(base / "teacher.pt", {"step": 1, "model": state, "ema": {}, "config": cfg.to_yaml()})
    cases = CASES | {"teacher": TEACHER | {"TARGET.checkpoint": str(base / "teacher.pt")}}

    def run(case, strategy):
        if (case, strategy) not in made:
            output = base / f"{case}-{strategy}"
            if strategy == "one":
                code, text = call(output, KEYS | cases[case])
            else:
                code, text = warm.run(2, output, KEYS | cases[case] | {"DISTRIBUTED.strategy": strategy})
            assert code == 0, text
            made[case, strategy] = output
        return made[case, strategy]

    return run


def _with_gradient(name, weight):
    """Without the bias of the keys, which has no effect: the optimizer makes steps of the rounding of its gradient."""
    return torch.cat([weight.chunk(3)[0], weight.chunk(3)[2]]) if name.endswith("qkv.bias") else weight


def near(output, reference):
    assert losses(output) == pytest.approx(losses(reference), rel=1e-5)
    ours, theirs = last_state(output), last_state(reference)
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, weight in theirs[part].items():
            actual, expected = (_with_gradient(name, each) for each in (ours[part][name], weight))
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4, msg=f"{part} {name}")
    values, expected = summary(output), summary(reference)
    assert values.keys() == expected.keys()
    for key, value in expected.items():
        if key.startswith("val/") and "target_std" not in key:  # of the images of a batch
            assert values[key] == pytest.approx(value, rel=2e-3), key
    for row, other in zip(rows(output), rows(reference), strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            if key.startswith("train/loss"):
                assert row[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", [*CASES, "teacher"])
def test_two_processes_train_as_one(trained, case, strategy):
    near(trained(case, strategy), trained(case, "one"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_run_of_one_process_goes_on_with_two(trained, warm, tmp_path, strategy):
    output = tmp_path / "run"
    shutil.copytree(trained("several", "one"), output)
    (output / "checkpoints" / "last").write_text(f"step-{HALF}.pt\n")
    (output / "summary.json").unlink()
    code, text = warm.run(2, output, KEYS | CASES["several"] | {"DISTRIBUTED.strategy": strategy})
    assert code == 0, text
    assert f"at step {HALF} of 10" in text
    near(output, trained("several", "one"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_clusters_across_all_devices_are_those_of_one_with_the_double_batch(warm, tmp_path, strategy):
    """One process with micro-batches of 128, two with 64 each, which are balanced together."""
    clusters = CASES["clusters"] | {"TARGET": CLUSTERS.replace("}", ", across: all}"), "TRAIN.batch": 256}
    assert call(tmp_path / "one", KEYS | clusters | {"DATA.batch_size": 128})[0] == 0
    code, text = warm.run(2, tmp_path / "two", KEYS | clusters | {"DISTRIBUTED.strategy": strategy})
    assert code == 0, text
    near(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_clusters_of_a_device_are_those_of_its_micro_batch(trained, tmp_path):
    """So another micro-batch gives other shares, and other devices with the same one give the same."""
    assert call(tmp_path / "one", KEYS | CASES["clusters"] | {"DATA.batch_size": 128})[0] == 0
    assert losses(tmp_path / "one") != pytest.approx(losses(trained("clusters", "one")), rel=1e-4)
