"""Processes that share a model as replicas (DDP), in shards (FSDP2) or both (HSDP): the run of one, resumed by any."""

import json
import shutil

import pytest
import torch
from processes import PARTS, ROOT, TINY, call, last_state, losses, run, same, summary, torchrun

from mim.engine.distributed.strategy import replica_mesh
from mim.engine.distributed.world import World
from mim.engine.settings import DistributedSettings

KEYS = TINY | {
    "TRAIN.batch": 256,
    "DATA.batch_size": 64,
    "OPTIMIZER.base_lr": 0.001,
    "TRAIN.epochs": 2,
    "TRAIN.ema": 0.9,
}
FSDP = KEYS | {"DISTRIBUTED.strategy": "fsdp"}
HSDP = KEYS | {"DISTRIBUTED.strategy": "hsdp", "DATA.batch_size": 32}
NODE = {"LOCAL_WORLD_SIZE": "2"}  # of four ranks
HALF = 5  # the step of the first of two epochs
EXACT = ("vit", "follower", "beit", "swin", "swin_v2", "finetune", "linear probe")
ROUNDED = ("vit, fp16", "vit, bf16", "follower, bf16")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, warm) -> dict[str, dict]:
    """Three steps of each case in sharing.py by two processes, and one with an infinite gradient in one of them."""
    script, log = ROOT / "tests" / "support" / "sharing.py", tmp_path_factory.mktemp("compared") / "log"
    code, text = warm.run_program(script, 2, [], log)
    assert code == 0, text
    assert "Warning" not in text, text
    cases = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {case["case"]: case for case in cases}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*EXACT, *ROUNDED])
def test_shards_take_the_steps_of_replicas(compared, case):
    """Losses, weights and moments; what is gathered in bf16 is rounded, weights of norms among it."""
    comparison = compared[case]
    assert comparison["start"] == 0
    ddp, fsdp = comparison["losses"]
    assert fsdp == pytest.approx(ddp, rel=1e-6 if case in EXACT else 1e-3)
    assert fsdp[0] == pytest.approx(ddp[0], rel=1e-7)
    assert comparison["moved"] > 0.01
    if case in EXACT:
        assert comparison["apart"] < 1e-3
        assert max(comparison["state"]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", [*EXACT, *ROUNDED])
def test_shards_are_a_part_of_every_weight(compared, case):
    assert sum(compared[case]["shares"]) == pytest.approx(1)
    assert all(0.4 < share < 0.6 for share in compared[case]["shares"])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*EXACT, *ROUNDED])
def test_step_that_is_not_finite_changes_no_shard(compared, case):
    assert compared[case]["poisoned"] == 0


# ---------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm):
    """Two epochs on one process, and on two in shards; each keeps the checkpoint of the first epoch."""
    base = tmp_path_factory.mktemp("runs")
    assert call(base / "one", KEYS)[0] == 0
    code, text = warm.run(2, base / "fsdp", FSDP)
    assert code == 0, text
    return base


@pytest.fixture(scope="module")
def replicas(runs, warm):
    """The same as replicas."""
    code, text = warm.run(2, runs / "ddp", KEYS)
    assert code == 0, text
    return runs


@pytest.fixture(scope="module")
def copies(runs, warm):
    """The same in shards over two processes each, twice."""
    code, text = warm.run(4, runs / "hsdp", HSDP, **NODE)
    assert code == 0, text
    assert "4 x CPU with 1 thread, hsdp" in text
    return runs


def _with_gradient(name, weight):
    """Without the bias of the keys, which has no effect: the optimizer makes steps of the rounding of its gradient."""
    return torch.cat([weight.chunk(3)[0], weight.chunk(3)[2]]) if name.endswith("qkv.bias") else weight


def _near(output, reference, copies=False) -> None:
    """Losses, figures, weights and moments; the loss of the first steps is a mean of other groups of rows.

    copies: the gradient is a sum of four parts, which are rounded otherwise.
    """
    assert losses(output) == pytest.approx(losses(reference), rel=1e-5)
    assert summary(output)["val/loss"] == pytest.approx(summary(reference)["val/loss"], rel=1e-4)
    ours, theirs = last_state(output), last_state(reference)
    assert ours.keys() == theirs.keys()
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, weight in theirs[part].items():
            pair = ours[part][name], weight
            if copies:
                pair = tuple(_with_gradient(name, each) for each in pair)
            torch.testing.assert_close(*pair, rtol=1e-3, atol=5e-5, msg=name)
    for index, moments in theirs["optimizer"]["state"].items():
        for name, value in moments.items():
            actual = ours["optimizer"]["state"][index][name]
            torch.testing.assert_close(actual, value, rtol=1e-3, atol=1e-5, msg=f"{index}.{name}")
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]


@pytest.mark.slow
def test_two_processes_train_in_shards_as_one(runs):
    _near(runs / "fsdp", runs / "one")


@pytest.mark.slow  # test_distributed.py has it among the fast tests, for one epoch
def test_two_processes_train_as_replicas_as_one(replicas):
    _near(replicas / "ddp", replicas / "one")


def _from_half(output, source):
    """The first half of another run, to be gone on with."""
    shutil.copytree(source, output)
    (output / "checkpoints" / "last").write_text(f"step-{HALF}.pt\n")
    (output / "summary.json").unlink()
    return output


def _ended_on_one_process(output, source):
    """The second half of another run, without torchrun."""
    code, text = call(_from_half(output, source), KEYS)
    assert code == 0, text
    assert f"at step {HALF} of 10" in text
    return output


@pytest.mark.slow
def test_run_in_shards_resumes_on_one_process(runs, tmp_path):
    _near(_ended_on_one_process(tmp_path / "run", runs / "fsdp"), runs / "one")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["one", "ddp"])
def test_run_of_one_or_of_replicas_resumes_in_shards(replicas, warm, tmp_path, source):
    output = _from_half(tmp_path / "run", replicas / source)
    code, text = warm.run(2, output, FSDP)
    assert code == 0, text
    assert f"at step {HALF} of 10" in text
    _near(output, replicas / "one")


@pytest.mark.slow
def test_four_processes_train_in_two_copies_of_two_shards_as_one(copies):
    _near(copies / "hsdp", copies / "one", copies=True)


@pytest.mark.slow
def test_run_in_copies_of_shards_resumes_on_one_process(copies, tmp_path):
    _near(_ended_on_one_process(tmp_path / "run", copies / "hsdp"), copies / "one", copies=True)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "exact"), [("one", False), ("hsdp", True)])
def test_run_resumes_in_copies_of_shards(copies, warm, tmp_path, source, exact):
    output = _from_half(tmp_path / "run", copies / source)
    code, text = warm.run(4, output, HSDP | {"DISTRIBUTED.shard_devices": 2})
    assert code == 0, text
    assert f"at step {HALF} of 10" in text
    _near(output, copies / "one", copies=True)
    for part in PARTS if exact else ():
        same(last_state(output)[part], last_state(copies / "hsdp")[part], part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [({}, "LOCAL_WORLD_SIZE is 0 (0: not set)"), ({"LOCAL_WORLD_SIZE": "3"}, "which do not divide the 2 devices")],
)
def test_copies_over_devices_that_do_not_come_out_are_refused(warm, tmp_path, environment, message):
    code, text = warm.run(2, tmp_path / "run", HSDP, **environment)
    assert code == 2, text
    assert message in text
    assert "DISTRIBUTED.shard_devices" in text


def test_shard_devices_must_divide_all_devices():
    settings = DistributedSettings(strategy="hsdp", shard_devices=4)
    with pytest.raises(ValueError, match=r"hsdp with 4 devices a copy .* do not divide the 6 devices of the run"):
        replica_mesh(settings, World(0, 6, torch.device("cpu")))


@pytest.mark.slow
def test_compiled_blocks_of_shards_train(tmp_path):
    """Compiling is the same for each block, and takes most of the time."""
    keys = KEYS | {"TRAIN.epochs": 1, "ENCODER.depth": 1, "HEAD.depth": 1, "EVALUATE.knn": 0}
    assert call(tmp_path / "one", keys)[0] == 0
    compiled = {"DISTRIBUTED.strategy": "fsdp", "TRAIN.compile": True, "TRAIN.activation_checkpointing": True}
    code, text = run(torchrun(2, tmp_path / "shards", keys | compiled), timeout=400)
    assert code == 0, text
    assert losses(tmp_path / "shards") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_strategy_without_effect_on_one_process_is_told(tmp_path):
    code, text = call(tmp_path, FSDP | {"TRAIN.epochs": 1, "DISTRIBUTED.shard_devices": 2})
    assert code == 0, text
    assert "DISTRIBUTED.strategy fsdp has no effect on one process without torchrun" in text
    assert "DISTRIBUTED.shard_devices 2 has no effect under DISTRIBUTED.strategy fsdp" in text
