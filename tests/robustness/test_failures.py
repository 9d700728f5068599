"""Bad input on a real run: what is survived and counted, and what ends it with a clear word and nothing lost."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from fragile_encoder import FRAGILE
from PIL import Image
from processes import (
    FINETUNE,
    PROBE,
    TINY,
    TINY_CLASSIFIER,
    call,
    command,
    last_checkpoint,
    losses,
    rows,
    run,
    summary,
)
from sklearn.datasets import load_digits
from small_data import write_noise

FOLDER = TINY | {"DATA.name": "folder", "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("tiny") / "run"
    assert call(output, TINY)[0] == 0
    return output


@pytest.fixture
def images(tmp_path):
    """64 real digits as JPEG files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, levels in enumerate(load_digits().images[:64]):
        picture = Image.fromarray((levels * 15).astype(np.uint8)).resize((32, 32))
        picture.save(folder / f"{number:03d}.jpg")
    return folder


def _truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def test_corrupt_file_among_good_ones_is_counted_and_named_and_the_run_goes_on(tmp_path, images):
    _truncate(images / "010.jpg")
    code, output = call(tmp_path / "run", FOLDER | {"DATA.path": images, "TRAIN.epochs": 2})
    assert code == 0, output
    assert output.count("another image replaces it") == 1
    assert re.search(r"cannot read \S*010\.jpg \(.+\)", output)
    assert [row.get("data/broken_files") for row in rows(tmp_path / "run") if "train/loss" in row][-1] == 1
    assert summary(tmp_path / "run")["data/broken_files"] == 1
    assert len(losses(tmp_path / "run")) == 8
    assert "010.jpg" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_corrupt_files_above_the_limit_stop_every_rank(tmp_path, warm, images, processes):
    for number in range(0, 64, 4):
        _truncate(images / f"{number:03d}.jpg")
    keys = FOLDER | {"DATA.path": images, "DATA.max_broken": 0.1, "TRAIN.epochs": 9}
    code, output = call(tmp_path / "run", keys) if processes == 1 else warm.run(2, tmp_path / "run", keys)
    assert code == 3, output
    errors = [line for line in output.splitlines() if "error: " in line]
    assert len(errors) == processes  # one from each rank
    assert all("DATA.max_broken 0.1" in line and "(6)" in line for line in errors)
    assert "stopped: RunStopped: " in (tmp_path / "run" / "log.txt").read_text()
    assert len(losses(tmp_path / "run")) < 8


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_non_finite_loss_stops_every_rank_and_saves_what_is_known(tmp_path, warm, processes):
    arrays = write_noise(tmp_path / "arrays")
    keys = (
        FOLDER | FRAGILE | {"DATA.path": arrays, "DATA.mean": "[0]", "DATA.std": "[1]", "AUGMENT.crop_scale": "[1,1]"}
    )
    code, output = call(tmp_path / "run", keys) if processes == 1 else warm.run(2, tmp_path / "run", keys)
    assert code == 3, output
    assert re.search(r"the (loss|gradient norm) is not finite at step \d+", output)
    for remedy in (
        "images of extreme values",
        "lower OPTIMIZER.base_lr or set TRAIN.clip",
        "TRAIN.precision",
    ):
        assert remedy in output
    saved = sorted((tmp_path / "run").glob("nonfinite-step-*.json"))
    assert len(saved) == processes
    reports = [json.loads(path.read_text()) for path in saved]
    files = [name.rpartition("/")[2] for rank in reports for name in rank["files"]]
    assert (len(files), files.count("037.npy")) == (16, 1)
    assert {"step", "loss", "learning_rate", "gradient_norm", "loss_scale"} <= reports[0].keys()
    state = torch.load(next((tmp_path / "run" / "checkpoints").glob("nonfinite-*.pt")), weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["adamw", "lars"])
def test_non_finite_loss_of_a_classifier_leaves_trained_weights_and_momenta_whole(tmp_path, recipe):
    arrays = write_noise(tmp_path / "arrays", classes=2)
    keys = TINY_CLASSIFIER | {"DATA.name": "folder", "DATA.path": arrays, "DATA.val_share": 0, "LABELS.per_class": 0}
    keys |= FRAGILE | {"DATA.mean": "[0]", "DATA.std": "[1]", "AUGMENT.crop_scale": "[1,1]"}
    code, output = call(tmp_path / "run", keys, recipe)
    assert code == 3, output
    assert re.search(r"the (loss|gradient norm) is not finite at step \d+", output)
    state = torch.load(next((tmp_path / "run" / "checkpoints").glob("nonfinite-*.pt")), weights_only=True)
    tensors = [weight for name, weight in state["model"].items() if ".norm.running" not in name]
    tensors += [value for moments in state["optimizer"]["state"].values() for value in moments.values()]
    assert len(tensors) > 10
    assert all(torch.isfinite(value).all() for value in tensors)


@pytest.mark.parametrize(
    ("recipe", "keys", "names"),
    [
        (FINETUNE, {"DATA.name": "folder", "DATA.path": "{flat}"}, ("TASK finetune", "labels")),
        (PROBE, {"DATA.name": "folder", "DATA.path": "{flat}"}, ("TASK probe", "labels")),
        (FINETUNE, {"MASKER.ratio": 0.5}, ("MASKER", "TASK finetune")),
        (PROBE, {"FREEZE.tune_blocks": 1}, ("FREEZE", "TASK probe")),
        (FINETUNE, {"ENCODER.hidden": "replace"}, ("ENCODER.hidden is replace", "none")),
        (FINETUNE, {"FREEZE.tune_blocks": 3}, ("FREEZE.tune_blocks is 3", "ENCODER.name vit", "2 blocks")),
        (FINETUNE, {"AUGMENT.mixup": 0.8, "DATA.batch_size": 5}, ("DATA.batch_size is 5", "even")),
        (FINETUNE, {"LABELS.per_class": 1}, ("10 training images", "16", "TRAIN.batch")),
        (PROBE, {"TRAIN.clip": 1, "PROBE.rates": "[1,2]"}, ("TRAIN.clip is 1", "the settings of PROBE")),
        (PROBE, {"INIT.checkpoint": "/nowhere/best.pt"}, ("INIT.checkpoint /nowhere/best.pt", "not exist")),
    ],
)
def test_mistake_in_a_classifier_is_answered_in_one_line(tmp_path, images, recipe, keys, names):
    keys = {key: str(value).format(flat=images) for key, value in keys.items()}
    code, output = call(tmp_path / "run", TINY_CLASSIFIER | keys, recipe)
    assert code == 2, output
    _one_error_names(output, names)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"DATA.name": "folder", "DATA.path": "/nowhere/at/all"}, ("DATA.path /nowhere/at/all", "not exist")),
        ({"DATA.name": "folder", "DATA.path": "{empty}"}, ("DATA.path {empty}", "no images")),
        ({"ENCODER.depht": 3}, ("ENCODER.depht", "vit", "'depth'")),
        ({"TRAIN.epochs": "many"}, ("TRAIN.epochs is 'many'", "integer")),
        ({"DATA.image_size": "[30,32]"}, ("MASKER.cell 4", "height 30")),
        ({"MASKER.ratio": 1}, ("MASKER.ratio is 1.0", "between 0 and 1")),
        ({"MASKER.ratio": 0}, ("MASKER.ratio is 0.0", "between 0 and 1")),
        ({"TRAIN.batch": 100}, ("TRAIN.batch 100", "DATA.batch_size 32", "1 device")),
        ({"TRAIN.batch": 3200}, ("1437 training images", "3200")),
        ({"INIT.checkpoint": "{empty}/none.pt"}, ("INIT.checkpoint {empty}/none.pt", "not exist")),
    ],
)
def test_mistake_is_answered_in_one_line(tmp_path, keys, names):
    empty = tmp_path / "empty"
    empty.mkdir()
    keys = {key: str(value).format(empty=empty) for key, value in keys.items()}
    code, output = call(tmp_path / "run", keys)
    assert code == 2, output
    _one_error_names(output, [name.format(empty=empty) for name in names])


def _one_error_names(output, names):
    """The only error is one line, and it names the key, the value and what is allowed."""
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert [name for name in names if name not in line] == [], line


def test_insisting_on_a_resume_needs_a_checkpoint(tmp_path):
    code, output = call(tmp_path / "run", TINY, flags=("--resume",))
    assert (code, output) == (2, f"error: --resume: {tmp_path / 'run'} holds no checkpoint\n")


def test_mistake_shows_no_traceback_in_a_real_process(tmp_path):
    code, output = run(command(tmp_path, {"ENCODER.name": "swim"}))
    assert code == 2
    assert re.search(r"^error: ENCODER.name 'swim' is unknown: did you mean 'swin'\?", output)
    assert "Traceback" not in output


def test_checkpoint_of_another_model_is_refused_and_nothing_is_lost(tmp_path, tiny):
    output = tmp_path / "run"
    shutil.copytree(tiny, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    code, text = call(output, TINY | {"HEAD.mlp_ratio": 2})
    assert code == 2
    assert "HEAD.mlp_ratio: 4.0 there, 2.0 here" in text
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before

    code, text = call(tmp_path / "wide", TINY | {"INIT.checkpoint": last_checkpoint(output), "ENCODER.width": 32})
    assert code == 2
    assert "ENCODER.width: 32 here, 16 there" in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", "abc", "lacks step, or holds another type of value there"),
        ("step", -1, "lacks step, or holds another type of value there"),
        ("step", 10**9, "was written after step 1000000000, and this run has 14"),
        ("results", None, "lacks results, or holds another type of value there"),
        ("config", ["DATA"], "lacks config, or holds another type of value there"),
        ("model", {}, "holds another model"),
    ],
)
def test_checkpoint_with_other_fields_is_refused_and_nothing_is_lost(tmp_path, tiny, name, value, message):
    output = tmp_path / "run"
    shutil.copytree(tiny, output)
    content = torch.load(last_checkpoint(output), weights_only=True)
    torch.save(content | {name: value}, last_checkpoint(output))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != "log.txt"}
    code, text = call(output, TINY)
    assert code == 2, text
    assert message in text
    assert {path: path.read_bytes() for path in before} == before


def test_initial_encoder_comes_from_the_checkpoint_of_another_run(tmp_path):
    """A run that starts from trained weights begins below one that starts from random ones."""
    assert call(tmp_path / "first", TINY)[0] == 0
    keys = TINY | {"INIT.checkpoint": last_checkpoint(tmp_path / "first"), "SEED": 1, "TRAIN.epochs": 1}
    code, text = call(tmp_path / "second", keys)
    assert code == 0, text
    assert re.search(r"step-14.pt: \d+ encoder weights loaded", text)
    assert "missing" not in text
