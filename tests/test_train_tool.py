"""tools/train.py as a user runs it: every family of recipes, a user's own encoder, a user's own images."""

import json

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, TINY, call, command, last_checkpoint, last_state, losses, run, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mim.config import load_config

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


@pytest.mark.parametrize("family", FAMILIES)
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
    said = [line for line in output.splitlines() if "of the file has no effect" not in line]  # before there is a folder
    assert "learning rate" in "".join(said)
    assert [line for line in said if line.removeprefix("warning: ").strip() not in log] == []

    found = summary(folder)
    assert set(found) >= SUMMARY
    assert (found["steps"], found["images_seen"], found["epochs"]) == (44, 44 * 64, 2)
    assert all(np.isfinite(value) for value in found.values() if not isinstance(value, str))
    assert found["val/loss"] < found["val/loss_at_start"]

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged = [event.step for event in events.Scalars("train/loss")]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == [row["images_seen"] for row in rows if "train/loss" in row]
    assert "reconstructions" in events.Tags()["images"]

    written = load_config(folder / "config.yaml")
    assert (written.TRAIN.epochs, written.DATA.name, written.DATA.channels) == (2, "digits", channels)
    assert len(written.DATA.mean) == channels


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
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    assert "conv, hidden cells: replace" in output


def test_train_takes_12_channel_non_square_arrays_without_a_code_change(tmp_path):
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
        "TRAIN.epochs": 20,
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
    found = summary(tmp_path / "run")
    assert found["val/loss"] < 0.9 * found["val/baseline"]
    assert "knn/top1" not in found
    assert "no kNN, because images have no labels" in output
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


def test_loader_processes_keep_the_loss_curve(tmp_path, plain):
    assert _curve(tmp_path, DATA__workers=2) == plain


@pytest.mark.slow
def test_compilation_keeps_the_loss_curve(tmp_path, plain):
    assert _curve(tmp_path, TRAIN__compile=True) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_close_to_fp32(tmp_path, plain, precision):
    curve = _curve(tmp_path, TRAIN__precision=precision)
    assert curve == pytest.approx(plain, rel=0.02)
    assert curve != plain


def test_another_seed_gives_another_curve(tmp_path, plain):
    assert _curve(tmp_path, SEED=1) != pytest.approx(plain, rel=1e-3)


def test_ema_is_what_evaluations_judge(tmp_path):
    """A decay of nearly one keeps the first weights, so that the held-out loss stays at its start."""
    found = {}
    for ema in (0, 0.99999):
        assert call(tmp_path / str(ema), TINY | {"EVALUATE.at_start": True, "TRAIN.ema": ema})[0] == 0
        found[ema] = summary(tmp_path / str(ema))
    assert found[0.99999]["val/loss"] == pytest.approx(found[0]["val/loss_at_start"], rel=0.02)
    assert found[0]["val/loss"] < 0.95 * found[0]["val/loss_at_start"]


def test_finished_run_is_left_alone(tmp_path):
    assert call(tmp_path, TINY)[0] == 0
    before = (tmp_path / "summary.json").read_bytes()
    code, output = call(tmp_path, TINY)
    assert code == 0
    assert "finished before" in output
    assert (tmp_path / "summary.json").read_bytes() == before


def test_checkpoint_holds_plain_values_and_the_config(tmp_path):
    assert call(tmp_path, TINY)[0] == 0
    content = last_state(tmp_path)  # loads with weights_only
    assert content["config"] == (tmp_path / "config.yaml").read_text()
    assert content["model"]["encoder.backbone.blocks.0.attn.qkv.weight"].shape == (48, 16)
