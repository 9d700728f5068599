"""A checkpoint of 0.1.0, which counts the parameters of its optimizer instead of naming them, resumes to the bit."""

import shutil
from pathlib import Path

import pytest
import torch
from processes import FINETUNE, PARTS, call, last_state, same

from mim import build, config
from mim.engine import checkpoint
from mim.engine.distributed.world import World
from mim.engine.train_state import TrainState

STORED = Path(__file__).parent / "checkpoints_0_1_0" / "step-5.pt"  # written by 0.1.0 with these keys
KEYS = {
    **{"ENCODER.width": 8, "ENCODER.depth": 2, "ENCODER.heads": 2, "LABELS.per_class": 8, "DATA.batch_size": 16},
    **{"TRAIN.batch": 16, "TRAIN.epochs": 2, "TRAIN.precision": "fp32", "TRAIN.ema": 0.9, "CHECKPOINT.every_epochs": 1},
    **{"CHECKPOINT.keep": 3, "EVALUATE.every_epochs": 1, "EVALUATE.confusion": False, "LOG.tensorboard": False},
}


def _resumed(output: Path, path: Path) -> Path:
    """A run folder that goes on from a checkpoint after 5 of 10 steps."""
    (output / "checkpoints").mkdir(parents=True)
    shutil.copy(path, output / "checkpoints" / "step-5.pt")
    code, text = call(output, KEYS, FINETUNE)
    assert code == 0, text
    assert "at step 5 of 10" in text
    return output


def test_checkpoint_of_0_1_0_gives_each_parameter_its_moments():
    content = checkpoint.load(STORED)
    cfg = config.parse_config(content["config"])
    task = build.build_task(cfg, *build.build_data(cfg))
    state = TrainState(task, build.engine_settings(cfg), World(0, 1, torch.device("cpu")))
    state.load(content, STORED)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    saved = content["optimizer"]["state"]
    assert list(saved) == list(range(len(parameters)))
    for number, parameter in enumerate(parameters):
        same(saved[number], dict(state.optimizer.state[parameter]), str(number))
    for name in ("model", "ema"):
        same(content[name], state.state()[name], name)


def test_run_of_0_1_0_goes_on(tmp_path):
    assert last_state(_resumed(tmp_path / "run", STORED))["step"] == 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    code, text = call(output, KEYS, FINETUNE)
    assert code == 0, text
    return output


def test_layout_of_0_1_0_resumes_to_the_bit(undisturbed, tmp_path):
    content = checkpoint.load(undisturbed / "checkpoints" / "step-5.pt")
    optimizer = content["optimizer"]
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    groups, count = [], 0
    for group in optimizer["param_groups"]:
        old = {"lr_scale": "factor", "no_weight_decay": "exempt"}
        numbers = list(range(count, count + len(group["params"])))
        groups.append({old.get(key, key): value for key, value in group.items()} | {"params": numbers})
        count += len(numbers)
    content["optimizer"] = {
        "state": {number: optimizer["state"][name] for number, name in enumerate(names)},
        "param_groups": groups,
    }
    checkpoint.write(tmp_path / "old.pt", content)
    ours, theirs = last_state(undisturbed), last_state(_resumed(tmp_path / "run", tmp_path / "old.pt"))
    for part in PARTS:
        same(ours[part], theirs[part], part)
