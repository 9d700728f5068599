"""Scaling on paper: bytes equal those that real processes exchange, sizes those of the model, times their formulas."""

import json
import re
from dataclasses import replace

import pytest
import torch
from processes import RECIPE, ROOT, tool

from mim import load_config
from mim.cost.flops import Work
from mim.engine.settings import DistributedSettings
from mim.lab.dryrun.task import dry_task
from mim.lab.plan.hardware import Hardware, sent
from mim.lab.plan.scaling import (
    STRATEGIES,
    ModelSizes,
    WeightGroup,
    cost,
    model_sizes,
    replica_bytes,
    scale,
    shard_bytes,
)

BUCKET = 25 * 2**20  # bytes, the default of DISTRIBUTED.bucket_mb
CONFIGS = RECIPE.parents[1]
SMALL = ["ENCODER.width", "24", "ENCODER.depth", "3", "ENCODER.heads", "2", "HEAD.width", "16", "HEAD.depth", "1"]
SMALL += ["HEAD.heads", "2", "DATA.batch_size", "4"]


def sizes(path=RECIPE, *overrides: str) -> ModelSizes:
    dry = dry_task(load_config(path, list(overrides)), 1_281_167)
    return model_sizes(dry.task.model, dry.task.blocks(), dry.engine_settings(), dry.task.model_summary.work)


def plain(blocks: int = 4, rows: int = 8, **changed) -> ModelSizes:
    """Blocks of one matrix of 1,000 columns and nothing else but a matrix as large; 1 and 3 TFLOP an image."""
    unit = WeightGroup(((rows, 1000, True),))
    defaults = {"buffers": 0, "product": 2, "bucket": BUCKET, "moments": 2, "average": False, "recomputed": False}
    return ModelSizes(blocks=(unit,) * blocks, rest=unit, work=Work(10**12, 3 * 10**12), **{**defaults, **changed})


# ---------------------------------------------------------------- bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "batch", "precision"),
    [("ddp", 2, 8, "fp32"), ("fsdp", 2, 16, "bf16"), ("hsdp", 4, 32, "bf16")],
)
def test_scaling_bytes_are_those_that_processes_exchange(tmp_path, warm, strategy, ranks, batch, precision):
    keys = [*SMALL, "TRAIN.batch", str(batch), "TRAIN.precision", precision, "DISTRIBUTED.strategy", strategy]
    keys += ["DISTRIBUTED.shard_devices", "2"] if strategy == "hsdp" else []
    script, words = ROOT / "benchmarks" / "exchange.py", ["--config", RECIPE, *keys]
    code, output = warm.run_program(script, ranks, words, tmp_path / "log")
    assert code == 0, output
    counted, formula = map(
        int, re.search(r"each device sends ([\d,]+) bytes; by the formula ([\d,]+)", output.replace(",", "")).groups()
    )
    buffers = 4 * sum(buffer.numel() for buffer in dry_task(load_config(RECIPE, keys)).task.model.buffers())
    assert formula <= counted <= formula + 100 + (buffers if strategy == "ddp" else 0)
    assert formula > 40_000


@pytest.mark.parametrize(
    "name",
    [
        "mae/vit_base",
        pytest.param("simmim/swin_base_100ep", marks=pytest.mark.slow),
        pytest.param("finetune/mae_vit_base", marks=pytest.mark.slow),
    ],
)
def test_scaling_sizes_are_the_models(name):
    path = CONFIGS / f"{name}.yaml"
    dry = dry_task(load_config(path), 1_281_167, 1000 if "finetune" in name else None)
    model = model_sizes(dry.task.model, dry.task.blocks(), dry.engine_settings(), dry.task.model_summary.work)
    weights = list(dry.task.model.parameters())
    assert model.weights() == sum(weight.numel() for weight in weights)
    assert model.weights(trained=True) == sum(weight.numel() for weight in weights if weight.requires_grad)
    assert len(model.blocks) == len(dry.task.blocks()) > 10
    assert model.work.training == dry.task.model_summary.flops


def test_scaling_checkpoint_has_the_bytes_of_a_real_one(tmp_path):
    estimate = sizes(RECIPE, *SMALL, "TRAIN.ema", "0.9")
    dry = dry_task(load_config(RECIPE, [*SMALL, "TRAIN.ema", "0.9"]))
    model = dry.build_model()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    for weight in optimizer.param_groups[0]["params"]:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = {"model": model.state_dict(), "ema": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(
        torch.utils._pytree.tree_map(lambda value: value.clone() if torch.is_tensor(value) else value, states),
        tmp_path / "a.pt",
    )
    assert (
        estimate.checkpoint
        < (tmp_path / "a.pt").stat().st_size
        < estimate.checkpoint + 200 * len(list(model.parameters())) * 5
    )


def test_scaling_rows_that_do_not_share_out_are_filled_up():
    unit = WeightGroup(((6, 10, True), (1, 7, False)))
    assert [unit.elements(devices) for devices in (1, 2, 4)] == [67, 60 + 14, 80 + 28]
    assert unit.elements(4, trained=True) == 80


def test_scaling_of_replicas_is_one_all_reduce_of_the_gradients():
    moved, stored = replica_bytes(plain(), 8)
    gradients = 4 * 5 * 8000
    assert moved == 2 * gradients * 7 / 8
    assert stored == 4 * gradients  # weights, gradients, two moments
    assert replica_bytes(plain(average=True, moments=1), 8)[1] == 4 * gradients
    assert replica_bytes(plain(), 1)[0] == 0


def test_scaling_of_shards_is_two_gatherings_and_one_scattering():
    block, rest = 8000, 8000
    moved, stored = shard_bytes(plain(), 8, accumulation=1)
    assert moved == (2 * 2 * 4 * block + 4 * rest + 4 * 5 * 8000) * 7 / 8
    assert stored == 16 * 5 * 8000 / 8 + (3 * 2 + 4) * block + 8 * rest
    accumulated, more = shard_bytes(plain(), 8, accumulation=3)
    assert accumulated - moved == 2 * (2 * 2 * 4 * block + 4 * rest) * 7 / 8
    assert more - stored == 4 * 4 * block  # gradients wait whole
    assert shard_bytes(plain(40), 8, 1)[1] < replica_bytes(plain(40), 8)[1] / 4


def test_scaling_of_copies_is_that_of_shards_and_an_all_reduce_of_each_shard():
    moved, stored = shard_bytes(plain(), 8, accumulation=3)
    of_both, stored_of_each = shard_bytes(plain(), 8, accumulation=3, copies=4)
    assert stored_of_each == stored
    assert of_both - moved == 2 * (4 * 5 * 8000 / 8) * 3 / 4
    scaling = scale(
        *(plain(), Hardware(node=4), [2, 4, 8, 10]),
        batch=0,
        micro_batch=2,
        distributed=DistributedSettings(strategy="hsdp"),
    )
    assert [list(row.costs) for row in scaling.rows] == [["ddp", "hsdp"]] * 3
    assert (scaling.refused, [scaling.shards(row.devices) for row in scaling.rows]) == ((10,), [2, 4, 4])
    eight = scaling.rows[2].costs["hsdp"]
    assert (eight.sent, eight.state_bytes) == shard_bytes(plain(), 4, 1, copies=2)


def test_scaling_of_copies_shares_the_adapter_of_a_node():
    hardware = Hardware(node_gb_s=100, network_gb_s=10, node_us=1, network_us=5)
    assert hardware.copies_s(8e9, 1, 8) == 0
    assert hardware.copies_s(8e9, 2, 8) == pytest.approx(2 * 4e9 / 10e9 + 10e-6)  # eight rings of 1 GB each
    assert hardware.copies_s(8e9, 2, 4) == pytest.approx(2 * 1e9 / 100e9 + 2e-6)
    slow = Hardware(node_gb_s=1e9, network_gb_s=1e-3, memory_gb_s=1e12, peak_tflops=100)
    apart, alone = (cost(plain(), slow, "hsdp", n, micro_batch=2, accumulation=1, shards=8) for n in (16, 8))
    assert apart.waits_s > 1e3 * alone.waits_s
    assert apart.waits_s == pytest.approx(2 * (4 * 5 * 8000) / 2 / 1e6 - 2 * 2 / 40, rel=0.01)


# ---------------------------------------------------------------- time


def test_scaling_of_rings_follows_bytes_and_hops():
    hardware = Hardware(node_gb_s=100, network_gb_s=10, node_us=1, network_us=5)
    assert sent(8e9, 8) == 7e9
    assert hardware.ring_s(8e9, 1) == 0
    assert hardware.ring_s(8e9, 8) == pytest.approx(0.07 + 7e-6)
    assert hardware.ring_s(8e9, 16) == pytest.approx(0.75 + 14e-6 + 10e-6)
    assert hardware.all_reduce_s(8e9, 16) == pytest.approx(1.5 + 2 * (3e-6 + 5e-6))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scaling_of_a_step_is_computing_and_waiting(strategy):
    fast = Hardware(node_gb_s=1e9, network_gb_s=1e9, node_us=1e-9, network_us=1e-9, memory_gb_s=1e12, peak_tflops=100)
    estimate = cost(plain(), fast, strategy, 8, micro_batch=2, accumulation=4)
    assert estimate.step_s == pytest.approx(4 * 2 * 3 / 40, rel=1e-6)
    assert 0 < estimate.waits_s < 1e-6
    recomputed = cost(plain(recomputed=True), fast, strategy, 8, micro_batch=2, accumulation=4)
    assert recomputed.step_s == pytest.approx(4 * 2 * 4 / 40, rel=1e-6)
    slow = Hardware(node_gb_s=1e-6, memory_gb_s=1e12, peak_tflops=100)
    late = cost(plain(), slow, strategy, 8, micro_batch=2, accumulation=1)
    assert late.waits_s > 0.5 * late.step_s
    assert late.waits_s <= late.sent / (1e9 * 1e-6) + 1e-3  # no more than all that is sent takes
    none = cost(replace(plain(), work=None), slow, strategy, 8, micro_batch=2, accumulation=1)
    assert (none.sent, none.step_s) == (late.sent, None)


def test_scaling_of_replicas_hides_nothing_before_the_first_bucket_nor_the_last_one():
    bucket = WeightGroup(((BUCKET // 4, 1, True),))
    four = replace(plain(blocks=3), rest=bucket, blocks=(bucket,) * 3)
    for gigabytes, images in ((1e-3, 20), (1e3, 20), (BUCKET / 1e9, 70)):
        slow = Hardware(node_gb_s=gigabytes, node_us=1e-9, peak_tflops=100)
        each, backward = BUCKET / (1e9 * gigabytes), images * 2 / 40  # on two devices, each sends a bucket once
        ready, ended = [backward * number / 4 for number in (1, 2, 3, 4)], 0.0  # one after another, as it is there
        for moment in ready:
            ended = max(ended, moment) + each
        waits_s = cost(four, slow, "ddp", 2, micro_batch=images, accumulation=3).waits_s
        assert waits_s == pytest.approx(ended - backward, rel=1e-6)


def test_scaling_keeps_the_batch_and_says_where_it_does_not_come_out():
    scaling = scale(plain(), Hardware(), [1, 8, 64, 1024, 3, 8192], batch=4096, micro_batch=64)
    rows = {share.devices: (share.batch, share.micro_batch, share.accumulation) for share in scaling.rows}
    assert rows == {1: (4096, 64, 64), 8: (4096, 64, 8), 64: (4096, 64, 1), 1024: (4096, 4, 1)}
    assert (scaling.refused, scaling.fixed) == ((3, 8192), True)
    grows = scale(plain(), Hardware(), [1, 8], batch=0, micro_batch=64)
    assert [share.batch for share in grows.rows] == [64, 512]
    odd = scale(plain(), Hardware(), [4], batch=4 * 70, micro_batch=64)
    assert (odd.rows[0].micro_batch, odd.rows[0].accumulation) == (35, 2)


# ---------------------------------------------------------------- the tool


def test_plan_tool_lays_numbers_of_devices_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "plan.json"
    words = ["--config", CONFIGS / "mae" / "vit_base.yaml", "--images", 1_281_167, "--json", file]
    words += ["--benchmarks", tmp_path / "none.jsonl", "--assume", "mfu=0.3", "--devices", 1, 8, 1024]
    assert tool("plan").main([*map(str, words), "ENCODER.depth", "2", "HEAD.depth", "1"]) == 0
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines() if not line.startswith("  python ")) <= 80
    assert "On more devices   on paper; the batch stays" in output
    assert "…" not in output
    rows = re.findall(r"^ +(1|8|1,024) +4,096 +(\d+) +(\d+) ", output, re.MULTILINE)
    assert rows == [("1", "64", "64"), ("8", "64", "8"), ("1,024", "4", "1")]
    assert re.search(r"^mfu .* assumed: --assume +0.3$", output, re.MULTILINE)
    scaling = json.loads(file.read_text())["scaling"]
    assert [share["devices"] for share in scaling["rows"]] == [1, 8, 1024]
    assert scaling["rows"][2]["costs"]["fsdp"]["waits_s"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "8", "many"], "--devices is 8 many: it must be whole numbers"),
        (["--devices", "0", "8"], "--devices is 0 8: at least 1 device"),
        (["--devices", "1", "8", "--assume", "mfu=fast"], "--assume mfu=fast: a number must follow"),
        (["--gpu", "b52"], "--gpu b52: Allowed: a100-40"),
    ],
)
def test_plan_tool_refuses_devices_and_assumptions(capsys, words, message):
    assert tool("plan").main(["--config", str(RECIPE), *words]) == 2
    assert message in capsys.readouterr().err
