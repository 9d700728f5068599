"""Hierarchical models of timm that leave hidden cells out, in whole runs on digits: several targets and followers."""

import json

import pytest
import torch
from small_data import write_digits

from mim import build_model, load_model, train
from mim.config import parse_config
from mim.engine import checkpoint

STEPS, DECAYS = 8, (0.9, 0.8)
TEXT = """
TASK: pretrain
DATA: {{name: folder, path: "{path}", val_share: 0.11, image_size: [64, 64], channels: 1, mean: [0.3], std: [0.35],
  batch_size: 8, workers: 0, masks: {masks}}}
MASKER: {{name: random, cell: 32, ratio: 0.5}}
{parts}
TRAIN: {{epochs: 2, batch: 8, precision: fp32}}
OPTIMIZER: {{name: adamw, base_lr: 0.1}}
SCHEDULE: {{name: cosine, warmup_epochs: 0}}
EVALUATE: {{every_epochs: 2, at_start: true, knn: 0, samples: 4, reconstructions: 0}}
CHECKPOINT: {{every_minutes: 1.0e-6, keep: 9}}
LOG: {{every_steps: 1, tensorboard: false}}
"""
CONVNEXT = "ENCODER: {name: timm, model: test_convnext, hidden: sparse}\n"
HIERA = (
    "ENCODER: {name: timm, model: hiera_tiny_224, hidden: drop, "
    "options: [embed_dim=16, num_heads=1, 'stages=[1, 1, 1, 1]']}\n"
)
UNET = "HEAD: {name: unet, width: 32}\n"
TRANSFORMER = "HEAD: {name: transformer, width: 16, depth: 1, heads: 2}\n"
PIXELS_HOG = "TARGET: [{name: pixels}, {name: hog, cell: 4, weight: 0.5}]\nLOSS: {name: mse}\n"
FOLLOWER = f"TARGET: {{name: follower, decay: {DECAYS[0]}, decay_end: {DECAYS[1]}}}\nLOSS: {{name: mse}}\n"
CASES = {  # the parts, and the masks of an image
    "unet, pixels and hog": (CONVNEXT + UNET + PIXELS_HOG, 1),
    "convnext, follower": (CONVNEXT + TRANSFORMER + FOLLOWER, 2),
    "hiera, follower": (HIERA + TRANSFORMER + FOLLOWER, 1),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes the run of a case, once: its config, its folder and its summary."""
    base, made = tmp_path_factory.mktemp("runs"), {}
    write_digits(base / "digits", 36)

    def run(case):
        if case not in made:
            parts, masks = CASES[case]
            cfg = parse_config(TEXT.format(path=base / "digits", parts=parts, masks=masks))
            made[case] = cfg, base / case, train(cfg, output=base / case, quiet=True)
        return made[case]

    return run


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_prediction_of_a_trained_model_is_that_without_the_hidden_pixels(runs, case):
    _, folder, _ = runs(case)
    model, _ = load_model(folder)
    img = torch.randn(6, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = model.sample_mask(img, torch.Generator().manual_seed(2))
    hidden = mask.at(64, 64)[:, None]
    with torch.no_grad():
        expected = model(img, mask)
        of_hidden, of_visible = (model(torch.where(where, img + 1, img), mask) for where in (hidden, ~hidden))
    assert torch.equal(of_hidden.prediction, expected.prediction)
    assert of_hidden.loss != expected.loss  # the target sees them
    assert not torch.allclose(of_visible.prediction, expected.prediction)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("follower")])
def test_follower_after_each_step_is_the_average_by_hand(runs, case):
    """From the encoder that the run begins with, and the encoders of the checkpoints."""
    cfg, folder, _ = runs(case)
    average = {name: each.double() for name, each in build_model(cfg).encoder.state_dict().items()}
    for step in range(1, STEPS + 1):
        state = checkpoint.load(folder / "checkpoints" / f"step-{step}.pt")["model"]
        decay = DECAYS[0] + (DECAYS[1] - DECAYS[0]) * step / STEPS
        for name, each in average.items():
            theirs = state[f"encoder.{name}"].double()
            each.mul_(decay).add_(theirs, alpha=1 - decay)
            torch.testing.assert_close(state[f"target.network.{name}"].double(), each, rtol=1e-5, atol=1e-6)
    moved = [name for name, each in average.items() if not torch.allclose(each, state[f"encoder.{name}"].double())]
    assert len(moved) > len(average) / 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_of_each_target_falls(runs, case):
    """From the first epoch to the second one, of the same images."""
    _, folder, _ = runs(case)
    steps = [row for row in rows(folder) if "train/loss" in row]
    assert len(steps) == STEPS
    keys = [key for key in steps[0] if key.startswith("train/loss")]
    assert len(keys) == (1 if "follower" in case else 3)
    for key in keys:
        first, second = (sum(row[key] for row in half) for half in (steps[: STEPS // 2], steps[STEPS // 2 :]))
        assert second < 0.98 * first, key


@pytest.mark.slow
def test_targets_of_two_strides_have_outputs_of_their_own_in_a_unet(runs):
    """The last layer learned for both, and the loss is their weighted sum."""
    cfg, folder, _ = runs("unet, pixels and hog")
    before, after = build_model(cfg), load_model(folder)[0]
    assert [part.spec.stride for part in after.target.targets] == [1, 4]
    maps = [model.head.shuffle(model.head.predict.bias[None, :, None, None]) for model in (before, after)]
    for old, new in zip(*(before.target.unpack(each) for each in maps), strict=True):
        assert not torch.allclose(old, new)
    for row in rows(folder):
        if "train/loss" in row:
            assert row["train/loss"] == pytest.approx(row["train/loss_pixels"] + 0.5 * row["train/loss_hog"])
