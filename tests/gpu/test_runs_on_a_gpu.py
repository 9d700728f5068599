"""Whole runs on a GPU: resumed to the bit, evaluated, sharded, and with crops made there."""

import json
import os
from pathlib import Path
from statistics import mean

import pytest
from processes import (
    PARTS,
    PROBE,
    TINY,
    TINY_CLASSIFIER,
    call,
    dying_at,
    evaluate,
    last_checkpoint,
    last_state,
    losses,
    run,
    same,
    summary,
    torchrun,
)

# drop path, EMA and accumulation are on: each would show a generator or a state that is not restored
KEYS = TINY | {"TRAIN.epochs": 2, "TRAIN.ema": 0.9, "ENCODER.drop_path": 0.2}
KEYS |= {"DATA.batch_size": 48, "EVALUATE.knn": 20}  # 14 steps an epoch, 2 micro-batches a step


@pytest.fixture(scope="module")
def trained(device, tmp_path_factory):
    """An undisturbed run."""
    output = tmp_path_factory.mktemp("trained") / "run"
    code, text = call(output, KEYS)
    assert code == 0, text
    return output


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_run_on_a_gpu_resumes_to_the_bit(device, tmp_path, precision):
    keys = KEYS | {"TRAIN.precision": precision, "TRAIN.deterministic": True}
    code, text = call(tmp_path / "undisturbed", keys)
    assert code == 0, text
    with dying_at(18):  # of 28; the last checkpoint is that of step 14
        call(tmp_path / "run", keys)
    code, text = call(tmp_path / "run", keys)
    assert code == 0, text
    assert "resumed from" in text
    states = [last_state(tmp_path / name) for name in ("undisturbed", "run")]
    for part in PARTS:
        same(states[0][part], states[1][part], part)
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")


def test_gpu_and_cpu_come_to_the_same_loss(device, tmp_path, trained):
    """Masks are drawn on the device, so that single losses differ."""
    code, text = call(tmp_path / "run", KEYS | {"DISTRIBUTED.device": "cpu"})
    assert code == 0, text
    assert mean(losses(trained)[-8:]) == pytest.approx(mean(losses(tmp_path / "run")[-8:]), rel=0.1)


def test_knn_on_a_gpu_is_that_of_the_cpu(device, tmp_path, trained):
    figures = []
    for name, keys in {"here": [], "cpu": ["DISTRIBUTED.device", "cpu"]}.items():
        code, text = evaluate("knn", trained, "--json", tmp_path / f"{name}.json", *keys)
        assert code == 0, text
        figures.append(json.loads((tmp_path / f"{name}.json").read_text())["knn/top1"])
    assert figures[0] == pytest.approx(figures[1], abs=0.02)
    assert 0.1 < summary(trained)["knn/top1"] <= 1


def test_probe_on_a_gpu_learns(device, tmp_path, trained):
    keys = TINY_CLASSIFIER | {"INIT.checkpoint": last_checkpoint(trained), "TRAIN.epochs": 3}
    code, text = call(tmp_path / "probe", keys, PROBE)
    assert code == 0, text
    assert 0.1 < summary(tmp_path / "probe")["val/top1"] <= 1


def test_crops_on_a_gpu_train_as_those_of_the_host(device, tmp_path, trained):
    outputs = [tmp_path / name for name in ("host", "device")]
    for output, on_device in zip(outputs, (False, True), strict=True):
        code, text = call(output, KEYS | {"TRAIN.epochs": 1, "AUGMENT.on_device": on_device})
        assert code == 0, text
    assert losses(outputs[1]) == pytest.approx(losses(outputs[0]), rel=0.02)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_strategy_at_one_rank_trains_as_no_strategy_does(device, tmp_path, trained, strategy):
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # of packages beside this interpreter's
    code, text = run(torchrun(1, tmp_path / "run", KEYS | {"DISTRIBUTED.strategy": strategy}), *map(Path, paths))
    assert code == 0, text
    assert losses(tmp_path / "run") == pytest.approx(losses(trained), rel=0.02)


def test_workers_that_start_after_the_gpu_change_no_loss(device, tmp_path, trained):
    """Their batches are copied from pinned memory."""
    code, text = call(tmp_path / "run", KEYS | {"DATA.workers": 2})
    assert code == 0, text
    assert losses(tmp_path / "run") == pytest.approx(losses(trained), rel=0.02)
