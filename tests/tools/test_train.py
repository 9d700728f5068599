"""tools/train.py as a user runs it: every family of recipes, a user's own encoder, a user's own images."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import (
    FINETUNE,
    PROBE,
    ROOT,
    TINY,
    TINY_CLASSIFIER,
    call,
    command,
    last_checkpoint,
    last_state,
    losses,
    rows,
    run,
    summary,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim import build
from mim.build import load_config
from mim.config import parse_config
from mim.engine.checkpoint import load_strict
from mim.engine.distributed.world import World
from mim.ops.positions import resize_positions

DIGITS = {
    "DATA.name": "digits",
    "DATA.image_size": "[32,32]",
    "DATA.workers": 0,
    "DATA.batch_size": 32,
    "TRAIN.batch": 64,
    "TRAIN.epochs": 2,
    "EVALUATE.samples": 32,
    "EVALUATE.knn_bank": 64,
}
VIT = {"ENCODER.width": 32, "ENCODER.depth": 2, "ENCODER.heads": 2}
PATCHES = {"ENCODER.patch": 4, "MASKER.cell": 8}
DECODER = {"HEAD.width": 16, "HEAD.depth": 1, "HEAD.heads": 2}
SWIN = {"ENCODER.width": 16, "ENCODER.depths": "[2,2]", "ENCODER.heads": "[2,2]", "ENCODER.window": 4, **PATCHES}
FAMILIES = {
    "mae/vit_base": VIT | PATCHES | DECODER,
    "simmim/swin_base_100ep": SWIN,
    "cifar10/mae_vit_tiny": VIT | DECODER,
    "cifar10/simmim_swin_tiny": SWIN,
    "cross/mae_on_replacing_vit": VIT | PATCHES | DECODER,
    "cross/transformer_decoder_on_swin": SWIN | DECODER,
    "quickstart/simmim_digits": VIT,
}
SUMMARY = {"task", "epochs", "steps", "images_seen", "train/loss", "val/loss", "knn/top1", "images_per_s", "seconds"}
SUMMARY |= {"parameters", "peak_memory_bytes", "flops_per_image"}
FILES = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "log.txt", "tensorboard", "checkpoints"}


QUICK = ("mae/vit_base",)  # tests/encoders/test_swin_v2.py trains a Swin with the head of SimMIM


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_train_runs_every_family_of_recipes(tmp_path, family):
    recipe = ROOT / "configs" / f"{family}.yaml"
    channels = load_config(recipe).DATA.channels
    code, output = call(tmp_path / "run", DIGITS | {"OPTIMIZER.base_lr": 4e-3} | FAMILIES[family], recipe=recipe)
    assert code == 0, output
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == FILES | {"reconstructions"}
    assert last_checkpoint(folder).exists()
    with Image.open(folder / "reconstructions" / "step-44.png") as picture:
        assert len(picture.convert("L").getcolors(1 << 16)) > 20

    log = (folder / "log.txt").read_text()
    early = ("of the file has no effect", "of the file have no effect")  # before there is a folder
    messages = [line for line in output.splitlines() if not any(text in line for text in early)]
    assert "learning rate" in "".join(messages)
    assert [line for line in messages if line.removeprefix("warning: ").strip() not in log] == []

    metrics = summary(folder)
    assert set(metrics) >= SUMMARY
    assert (metrics["steps"], metrics["images_seen"], metrics["epochs"]) == (44, 44 * 64, 2)
    assert all(np.isfinite(value) for value in metrics.values() if not isinstance(value, str))
    assert metrics["val/loss"] < metrics["val/loss_at_start"]

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [event.step for event in events.Scalars("train/loss")]
    assert logged == [row["images_seen"] for row in rows(folder) if "train/loss" in row]
    assert "reconstructions" in events.Tags()["images"]

    cfg = load_config(folder / "config.yaml")
    assert (cfg.TRAIN.epochs, cfg.DATA.name, cfg.DATA.channels) == (2, "digits", channels)
    assert len(cfg.DATA.mean) == channels


ENCODER = '''
from typing import Literal
import mim
from einops import rearrange
from torch import nn

class Conv(mim.Encoder, name="conv"):
    """Two layers of convolution over patches."""
    def __init__(self, image, *, hidden: Literal["replace", "none"] = "replace", width: int = 24, patch: int = 4):
        super().__init__(image, hidden, width=width, patch=patch)
        self.embed = nn.Conv2d(image.channels, width, patch, patch)
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
        self.mix = nn.Sequential(convolutions[0], nn.GELU(), convolutions[1])

    def forward(self, img_BCHW, mask=None):
        tokens_BND = self.replace_hidden(rearrange(self.embed(img_BCHW), "b d h w -> b (h w) d"), mask)
        map_BDHW = self.mix(rearrange(tokens_BND, "b (h w) d -> b d h w", h=self.spec.grid[0]))
        return mim.Features(rearrange(map_BDHW, "b d h w -> b (h w) d"), self.spec.grid)
'''


@pytest.mark.slow  # in this process: tests/test_docs.py
def test_train_runs_an_encoder_of_the_users_own_package(tmp_path):
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "my_encoder.py").write_text(ENCODER)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "PLUGINS: [my_package.my_encoder]\n"
        "DATA: {name: digits, image_size: [32, 32], channels: 1, batch_size: 64, workers: 0}\n"
        "MASKER: {name: random, cell: 8, ratio: 0.5}\n"
        "ENCODER: {name: conv, width: 32}\n"
        "HEAD: {name: pixel_shuffle}\n"
        "LOSS: {name: l1}\n"
        "TRAIN: {epochs: 2}\n"
        "OPTIMIZER: {base_lr: 0.01}\n"
        "SCHEDULE: {warmup_epochs: 0}\n"
        "LOG: {every_steps: 5}\n"
    )
    code, output = run(command(tmp_path / "run", {}, recipe), tmp_path)
    assert code == 0, output
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0]
    assert "conv, hidden cells: replace" in output


@pytest.mark.parametrize("epochs", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_train_takes_12_channel_non_square_arrays_without_a_code_change(tmp_path, epochs):
    """Each channel is another mixture of two smooth waves: structure that a model can fill in."""
    images = tmp_path / "plates"
    images.mkdir()
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:96, :160] / 16
    for number in range(40):
        phase = generator.uniform(0, 6, 2)
        waves = np.stack([np.sin(row + phase[0]), np.cos(column + phase[1])])
        mixed = np.einsum("cw,whx->chx", generator.uniform(0, 1, (12, 2)), waves)
        np.save(images / f"{number:03d}.npy", ((mixed + 2) * 8000).astype(np.uint16))
    keys = {
        "DATA.name": "folder",
        "DATA.path": images,
        "DATA.channels": 12,
        "DATA.image_size": "[96,160]",
        "DATA.batch_size": 4,
        "TRAIN.batch": 4,
        "TRAIN.epochs": epochs,
        "ENCODER.patch": 16,
        "ENCODER.depth": 2,
        "HEAD.width": 128,
        "MASKER.cell": 16,
        "MASKER.ratio": 0.5,
        "TARGET.normalize": "none",
        "EVALUATE.samples": 4,
        "OPTIMIZER.base_lr": 0.06,
        "LOG.every_steps": 9,
    }
    code, output = call(tmp_path / "run", keys)
    assert code == 0, output
    metrics = summary(tmp_path / "run")
    assert epochs == 1 or metrics["val/loss"] < 0.9 * metrics["val/baseline"]
    assert "knn/top1" not in metrics
    assert re.search("no kNN.*labels.*class folders", output)  # what is left out, why, and the way out
    assert len(load_config(tmp_path / "run" / "config.yaml").DATA.mean) == 12


def _curve(output, **settings) -> list[float]:
    keys = (
        TINY | {"TRAIN.batch": 128, "DATA.batch_size": 128} | {key.replace("__", "."): v for key, v in settings.items()}
    )
    code, text = call(output, keys)
    assert code == 0, text
    assert "no effect" not in text
    return losses(output)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[float]:
    """The loss curve with no setting of cost."""
    return _curve(tmp_path_factory.mktemp("plain"))


def test_accumulation_keeps_the_loss_curve(tmp_path, plain):
    assert _curve(tmp_path, DATA__batch_size=32) == pytest.approx(plain, rel=1e-5)


def test_activation_checkpointing_keeps_the_loss_curve(tmp_path, plain):
    assert _curve(tmp_path, TRAIN__activation_checkpointing=True) == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
def test_loader_processes_keep_the_loss_curve_and_leave_no_temporary_file(tmp_path, plain, temporary):
    assert _curve(tmp_path, DATA__workers=2) == plain
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_compilation_keeps_the_loss_curve(tmp_path, plain):
    assert _curve(tmp_path, TRAIN__compile=True) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_lower_precision_stays_close_to_fp32(tmp_path, plain, precision):
    curve = _curve(tmp_path, TRAIN__precision=precision)
    assert curve == pytest.approx(plain, rel=0.02)
    assert curve != plain


def test_another_seed_gives_another_curve(tmp_path, plain):
    assert _curve(tmp_path, SEED=1) != pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_ema_is_what_evaluations_judge(tmp_path):
    """A decay of nearly one keeps the first weights, so that the held-out loss stays at its start."""
    metrics = {}
    for ema in (0, 0.99999):
        assert call(tmp_path / str(ema), TINY | {"EVALUATE.at_start": True, "TRAIN.ema": ema})[0] == 0
        metrics[ema] = summary(tmp_path / str(ema))
    assert metrics[0.99999]["val/loss"] == pytest.approx(metrics[0]["val/loss_at_start"], rel=0.02)
    assert metrics[0]["val/loss"] < 0.95 * metrics[0]["val/loss_at_start"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run folder of TINY."""
    folder = tmp_path_factory.mktemp("finished")
    assert call(folder, TINY)[0] == 0
    return folder


def test_finished_run_is_left_alone(finished):
    before = (finished / "summary.json").read_bytes()
    code, output = call(finished, TINY)
    assert code == 0
    assert "finished before" in output
    assert (finished / "summary.json").read_bytes() == before


def test_checkpoint_holds_plain_values_and_the_config(finished):
    content = last_state(finished)  # loads with weights_only
    assert content["config"] == (finished / "config.yaml").read_text()
    assert content["model"]["encoder.backbone.blocks.0.attn.qkv.weight"].shape == (48, 16)


# -------------------------------------------------------------------- fine-tuning and probes

KEYS = TINY_CLASSIFIER
TASKS = pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])


def _classify(output, recipe, **settings) -> list[float]:
    rates = {"PROBE.rates": "[0.3,1,3]"} if recipe == PROBE else {}
    keys = KEYS | rates | {key.replace("__", "."): value for key, value in settings.items()}
    code, text = call(output, keys, recipe)
    assert code == 0, text
    return losses(output)


@pytest.mark.parametrize("recipe", [pytest.param(FINETUNE, marks=pytest.mark.slow), PROBE], ids=["finetune", "probe"])
def test_best_checkpoint_is_that_of_the_best_epoch(tmp_path, recipe):
    """A learning rate that rises to the end spoils the last epochs; where it happens not to, another seed is tried."""
    for seed in range(5):
        folder = tmp_path / str(seed)
        keys = {"SCHEDULE__warmup_epochs": 6, "OPTIMIZER__base_lr": 3, "DATA__batch_size": 8, "SEED": seed}
        _classify(folder, recipe, TRAIN__epochs=6, **keys)
        if _step_of_the_best(folder) < 30:
            return
    pytest.fail("in five runs the last epoch was the best")


def _step_of_the_best(folder: Path) -> int:
    """Of a run of six epochs whose best checkpoint holds what it should."""
    evaluations = [row for row in rows(folder) if "val/top1" in row]
    score = "choice/top1" if "choice/top1" in evaluations[0] else "val/top1"
    epochs = [(row["step"], row["epoch"], row["val/top1"]) for row in evaluations]
    assert [epoch for _, epoch, _ in epochs] == [1, 2, 3, 4, 5, 6]
    first = max(evaluations, key=lambda row: row[score])  # the first of equals
    step, epoch, best = first["step"], first["epoch"], first["val/top1"]
    content = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    assert content["step"] == step
    assert (content["results"]["best/top1"], content["results"]["best/epoch"]) == (best, epoch)
    metrics = summary(folder)
    assert (metrics["best/top1"], metrics["best/epoch"], metrics["val/top1"]) == (best, epoch, epochs[-1][2])

    cfg = parse_config(content["config"])
    task = build.build_task(cfg, *build.build_data(cfg))
    load_strict(task.model, content["model"], folder)
    with torch.no_grad():
        figures = task.evaluate(task.model.eval(), World(0, 1, torch.device("cpu"))).metrics
    assert figures["val/top1"] == best
    return step


def _groups(state: dict) -> list[tuple]:
    """Of a saved optimizer: each group's lr_scale, weight decay, number of parameters, and learning rate."""
    return [
        (group["lr_scale"], group["weight_decay"], len(group["params"]), group["lr"]) for group in state["param_groups"]
    ]


@pytest.mark.parametrize("tune_blocks", ["all", 1])
def test_finetune_learns_at_the_rate_of_each_layer(tmp_path, tune_blocks):
    _classify(
        tmp_path, FINETUNE, OPTIMIZER__layer_decay=0.5, OPTIMIZER__weight_decay=0.1, FREEZE__tune_blocks=tune_blocks
    )
    rate = next(row["train/learning_rate"] for row in rows(tmp_path)[::-1] if "train/loss" in row)
    expected = [
        *((1.0, 0.1, 1), (1.0, 0.0, 3)),  # the classifier: its weight; its bias, and the norm before it
        *((0.5, 0.1, 4), (0.5, 0.0, 8)),  # the last block: four weights; their biases, and two norms
        *((0.25, 0.1, 4), (0.25, 0.0, 8)),  # the first block
        *((0.125, 0.1, 1), (0.125, 0.0, 3)),  # the stem: the projection; its bias, class token and positions
    ]
    groups = _groups(last_state(tmp_path)["optimizer"])
    assert [group[:3] for group in groups] == expected[: 8 if tune_blocks == "all" else 4]
    assert [group[3] for group in groups] == pytest.approx([rate * group[0] for group in groups], rel=1e-12)
    assert rate > 0


def test_finetune_lr_scale_on_the_peak_leaves_the_warmups_start_alone(tmp_path):
    keys = {"SCHEDULE__lr_scale_on": "peak", "SCHEDULE__warmup_lr": 1e-4, "SCHEDULE__warmup_epochs": 10}
    _classify(tmp_path, FINETUNE, OPTIMIZER__layer_decay=0.5, OPTIMIZER__base_lr=0.16, TRAIN__epochs=1, **keys)
    groups = _groups(last_state(tmp_path)["optimizer"])
    share = 4 / 50  # step 4, the last of one epoch, of a warmup of 50
    expected = [1e-4 + (group[0] * 0.01 - 1e-4) * share for group in groups]
    assert [group[3] for group in groups] == pytest.approx(expected, rel=1e-9)


def test_probe_learns_at_each_of_its_rates(tmp_path):
    _classify(tmp_path, PROBE, PROBE__rates="[0.1,1,30]")
    rate = next(row["train/learning_rate"] for row in rows(tmp_path)[::-1] if "train/loss" in row)
    state = last_state(tmp_path)
    factors = [30, 30, 1, 1, 0.1, 0.1]  # a weight and a bias each
    assert [group[:3] for group in _groups(state["optimizer"])] == [(factor, 0.0, 1) for factor in factors]
    assert [group[3] for group in _groups(state["optimizer"])] == pytest.approx([rate * factor for factor in factors])
    assert [group["always_adapt"] for group in state["optimizer"]["param_groups"]] == [True, False] * 3
    assert all("momentum_buffer" in moments for moments in state["optimizer"]["state"].values())


LEARNING = {  # settings under which ten steps are enough to learn something
    FINETUNE: {"OPTIMIZER__base_lr": 0.1, "READOUT__init_std": 0.5, "ENCODER__drop_path": 0},
    PROBE: {"OPTIMIZER__base_lr": 8, "OPTIMIZER__trust": 0.3},
}


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("recipe", "close"),
    [pytest.param(FINETUNE, 0.05, marks=pytest.mark.slow), (PROBE, 0.005)],
    ids=["finetune", "probe"],
)
def test_classifier_in_lower_precision_stays_close_to_fp32(tmp_path, recipe, close, precision):
    plain = _classify(tmp_path / "fp32", recipe, **LEARNING[recipe])
    assert min(plain) < (1 - 5 * close) * plain[0]
    curve = _classify(tmp_path / precision, recipe, TRAIN__precision=precision, **LEARNING[recipe])
    assert curve == pytest.approx(plain, rel=close)
    assert curve != plain


@pytest.mark.slow
def test_accumulation_keeps_the_loss_curve_of_finetuning(tmp_path):
    keys = {"ENCODER__drop_path": 0, "AUGMENT__randaugment": "rand-m9-mstd0.5-inc1", "AUGMENT__jitter": 0.4}
    plain = _classify(tmp_path / "one", FINETUNE, **keys)
    assert _classify(tmp_path / "four", FINETUNE, DATA__batch_size=4, **keys) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"TRAIN__activation_checkpointing": True}, {"DATA__workers": 2}])
def test_setting_of_cost_keeps_the_loss_curve_of_finetuning(tmp_path, keys):
    """Under everything that draws: drop path, mixing, erasing, RandAugment and jitter."""
    drawing = {"ENCODER__drop_path": 0.3, "AUGMENT__mixup": 0.8, "AUGMENT__cutmix": 1, "AUGMENT__erase": 0.5}
    drawing |= {"AUGMENT__randaugment": "rand-m9-mstd0.5-inc1", "AUGMENT__jitter": 0.4, "TRAIN__epochs": 1}
    plain = _classify(tmp_path / "plain", FINETUNE, **drawing)
    assert _classify(tmp_path / "other", FINETUNE, **drawing, **keys) == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
@TASKS
def test_compilation_keeps_the_loss_curve_of_classifiers(tmp_path, recipe):
    keys = {"ENCODER__drop_path": 0, "TRAIN__epochs": 1}
    plain = _classify(tmp_path / "plain", recipe, **keys)
    assert _classify(tmp_path / "compiled", recipe, TRAIN__compile=True, **keys) == pytest.approx(plain, rel=1e-4)


# -------------------------------------------------------------------- from pretraining to another image size

SHORT = TINY | {"DATA.batch_size": 256, "TRAIN.batch": 256, "CHECKPOINT.every_epochs": 0}  # 5 steps


@pytest.mark.slow
def test_finetune_of_a_vit_at_another_image_size_resizes_its_positions_and_says_so(tmp_path):
    code, text = call(tmp_path / "pretrained", SHORT | {"TRAIN.ema": 0.5})
    assert code == 0, text
    start = last_checkpoint(tmp_path / "pretrained")
    keys = KEYS | {"DATA.image_size": "[48,40]", "INIT.checkpoint": start, "OPTIMIZER.base_lr": 0, "TRAIN.epochs": 1}
    keys |= {"SCHEDULE.min_lr": 0}
    code, text = call(tmp_path / "tuned", keys, FINETUNE)
    assert code == 0, text
    log = (tmp_path / "tuned" / "log.txt").read_text()
    for pattern in (
        r"step-5\.pt: 28 encoder weights .*moving average",
        r"resized.*: backbone\.pos_embed 1x65x16 -> 1x121x16",
        r"left out: backbone\.norm\.\{weight, bias\}",
    ):
        assert re.search(pattern, text)
        assert re.search(pattern, log)
    average, tuned = (torch.load(path, weights_only=True) for path in (start, last_checkpoint(tmp_path / "tuned")))
    table = average["ema"]["module.encoder.backbone.pos_embed"]
    assert torch.equal(tuned["model"]["encoder.backbone.pos_embed"], resize_positions(table, (12, 10), (32, 32), 1))
    same = [name for name in tuned["model"] if name.startswith("encoder.") and "pos_embed" not in name]
    assert len(same) == 27
    assert all(torch.equal(tuned["model"][name], average["ema"][f"module.{name}"]) for name in same)


@pytest.mark.slow
def test_finetune_of_a_swin_with_another_window_resizes_its_biases_and_says_so(tmp_path):
    swin = "{name: swin, hidden: %s, patch: 4, width: 8, depths: [1, 1], heads: [1, 2], window: %d}"
    images = "{name: digits, image_size: %s, channels: 1, batch_size: %d, workers: 0}"
    pretraining, finetuning = tmp_path / "pretraining.yaml", tmp_path / "finetuning.yaml"
    pretraining.write_text(
        f"DATA: {images % ([32, 32], 256)}\nMASKER: {{cell: 8, ratio: 0.5}}\nENCODER: {swin % ('replace', 4)}\n"
        "HEAD: {name: pixel_shuffle}\nLOSS: {name: l1}\n"
    )
    finetuning.write_text(
        f"TASK: finetune\nDATA: {images % ([48, 96], 16)}\nENCODER: {swin % ('none', 6)}\n"
        "OPTIMIZER: {layer_decay: 0.9}\n"
    )
    foreign = ("ENCODER", "HEAD")
    keys = {key: value for key, value in SHORT.items() if not key.startswith(foreign)}
    code, text = call(tmp_path / "pretrained", keys, pretraining)
    assert code == 0, text
    keys = {key: value for key, value in KEYS.items() if not key.startswith(foreign)}
    keys |= {"INIT.checkpoint": last_checkpoint(tmp_path / "pretrained"), "TRAIN.epochs": 1}
    code, text = call(tmp_path / "tuned", keys, finetuning)
    assert code == 0, text
    table = "backbone.layers.{}.blocks.0.attn.relative_position_bias_table"
    assert f": {table.format(0)} 49x1 -> 121x1, {table.format(1)} 49x2 -> 121x2" in text
    assert "left out: mask_token" in text
    assert "missing" not in text


@pytest.mark.slow
def test_finetune_of_too_different_a_checkpoint_is_refused_and_trains_nothing(tmp_path):
    assert call(tmp_path / "pretrained", SHORT | {"ENCODER.depth": 6})[0] == 0
    keys = KEYS | {"INIT.checkpoint": last_checkpoint(tmp_path / "pretrained")}
    code, text = call(tmp_path / "other", keys, FINETUNE)
    assert code == 2
    assert "ENCODER.depth: 2 here, 6 there" in text
    keys |= {"INIT.keep": "[ENCODER.depth]"}
    code, text = call(tmp_path / "shallow", keys, FINETUNE)
    assert code == 2
    assert re.search(r"INIT\.checkpoint .*step-5\.pt.*at least 50%", text, re.DOTALL)
    code, text = call(tmp_path / "deep", keys | {"ENCODER.depth": 14}, FINETUNE)
    assert code == 2
    assert re.search(r"INIT\.checkpoint .*step-5\.pt.*at least 50%", text, re.DOTALL)
    for folder in ("shallow", "deep"):
        assert not (tmp_path / folder / "metrics.jsonl").exists()
        assert list((tmp_path / folder / "checkpoints").iterdir()) == []


def test_train_warns_where_the_model_predicts_worse_than_the_mean(tmp_path):
    code, output = call(tmp_path / "run", TINY | {"OPTIMIZER.base_lr": 1e-12})
    assert code == 0, output
    metrics = summary(tmp_path / "run")
    warning = next(line for line in output.splitlines() if "is above val/baseline" in line)
    assert f"val/loss {metrics['val/loss']:.4f}" in warning
    assert f"val/baseline {metrics['val/baseline']:.4f}" in warning
    assert "OPTIMIZER.base_lr" in warning
