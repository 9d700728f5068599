"""What evaluations measure of moving targets: the rank by numpy, and targets that are alike for all images."""

import numpy as np
import pytest
import torch
from processes import RECIPE, TINY, call, summary

from mim import build
from mim.build import load_config
from mim.engine.distributed.world import World
from mim.evaluation.rank import effective_rank
from mim.tasks.held_out_targets import collapse

ALONE = World(0, 1, torch.device("cpu"))
FOLLOWER = {"TARGET.name": "follower", "TARGET.norm": "none"}


def rank_by_svd(vectors):
    values = np.linalg.svd(vectors, compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 0]
    return np.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("shape", [(40, 7), (5, 30), (16, 16), (1, 4)])
def test_effective_rank_is_that_of_numpys_singular_values(shape):
    vectors = np.random.default_rng(0).standard_normal(shape) * np.geomspace(1, 1e-2, shape[1])
    assert effective_rank(torch.from_numpy(vectors)) == pytest.approx(rank_by_svd(vectors), rel=1e-6)


def test_effective_rank_of_few_directions_is_their_number():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 3)))[0]
    vectors = np.concatenate([basis.T] * 4)
    assert effective_rank(torch.from_numpy(vectors)) == pytest.approx(3, rel=1e-3)
    assert effective_rank(torch.ones(6, 5)) == pytest.approx(1, rel=1e-3)
    assert effective_rank(torch.zeros(6, 5)) == 0


def measured(encoder_sees_images: bool, **keys):
    words = TINY | {"DATA.workers": 0, "DATA.batch_size": 16, "EVALUATE.samples": 40, "EVALUATE.knn": 0} | FOLLOWER
    cfg = load_config(RECIPE, [str(word) for pair in (words | keys).items() for word in pair])
    model = (task := build.build_task(cfg, *build.build_data(cfg))).model.eval()
    if not encoder_sees_images:
        for encoder in (model.encoder, model.target.network):
            torch.nn.init.zeros_(encoder.backbone.patch_embed.proj.weight)
    with torch.no_grad():
        return model, task.evaluate(model, ALONE).metrics


def test_target_rank_is_that_of_what_differs_between_images():
    words = TINY | {"DATA.workers": 0, "DATA.batch_size": 40, "EVALUATE.samples": 40, "EVALUATE.knn": 0} | FOLLOWER
    cfg = load_config(RECIPE, [str(word) for pair in words.items() for word in pair])
    task = build.build_task(cfg, *build.build_data(cfg))
    model, maps = task.model.eval(), []
    handle = model.target.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        metrics = task.evaluate(model, ALONE).metrics
    handle.remove()
    vectors = maps[0].flatten(2)[:, :, [13, 25, 38, 50]].double().numpy()  # of 64 entries, evenly
    differences = (vectors - vectors.mean(axis=0)).transpose(0, 2, 1).reshape(160, -1)
    assert metrics["val/target_rank"] == pytest.approx(rank_by_svd(differences), rel=1e-4)
    expected = np.sqrt(maps[0].double().numpy().var(axis=0, ddof=1).mean())
    assert metrics["val/target_std"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_targets_that_tell_places_and_not_images_apart_have_collapsed(norm):
    """An encoder that sees positions alone: its tokens differ, its images do not."""
    model, blind = measured(False, **{"TARGET.norm": norm})
    _, seeing = measured(True, **{"TARGET.norm": norm})
    target = model.target(torch.randn(2, 1, 32, 32))
    assert target.var(dim=(2, 3)).mean() > 1e-3
    torch.testing.assert_close(target[0], target[1])
    start = {f"{key}_at_start": value for key, value in seeing.items()}
    assert "the targets have collapsed" in collapse(blind | start)
    assert "TARGET.decay" in collapse(blind | start)
    assert collapse(seeing | start) == ""
    assert blind["val/target_std"] < 1e-3 * seeing["val/target_std"]


def test_collapse_is_told_of_each_of_several_targets_and_of_no_pixels():
    start = {"val/target_std_a_at_start": 1.0, "val/target_rank_a_at_start": 1.0}
    assert collapse({"val/loss": 0.0, "val/baseline": 1.0}) == ""
    assert collapse({"val/target_std_a": 0.5, "val/target_rank_a": 9.0, **start}) == ""
    assert "val/target_std_a is 0.01 (1 at the start)" in collapse({"val/target_std_a": 0.01, **start})
    assert "val/target_rank_b is 1.50" in collapse({"val/target_rank_a": 9.0, "val/target_rank_b": 1.5, **start})
    fallen = {"val/target_rank": 8.0, "val/target_rank_at_start": 30.0}
    assert "val/target_rank is 8.00 (30.00 at the start)" in collapse(fallen)
    assert collapse(fallen | {"val/target_rank": 20.0}) == ""


def test_targets_of_one_direction_from_the_start_have_not_collapsed():
    """Two clusters have one, because shares add up to 1."""
    start = {"val/target_rank_at_start": 1.0}
    assert collapse({"val/target_rank": 1.0, **start}) == ""
    assert collapse({"val/target_rank": 0.3, **start}) != ""


def test_rank_of_one_image_says_nothing_and_is_left_out():
    _, metrics = measured(True, **{"EVALUATE.samples": 1})
    assert "val/target_rank" not in metrics
    assert collapse(metrics) == ""


COLLAPSING = {"TARGET.decay": 0, "TARGET.decay_end": 0, "ENCODER.norm": False, "OPTIMIZER.base_lr": 0.05}
MOVING = {"TARGET.decay": 0.99, "TARGET.norm": "layer"}
RUN = TINY | FOLLOWER | {"EVALUATE.at_start": True, "EVALUATE.knn": 0, "CHECKPOINT.every_epochs": 0}


@pytest.mark.slow
@pytest.mark.parametrize("collapses", [True, False], ids=["collapses", "does not collapse"])
def test_run_tells_whether_its_targets_collapsed(tmp_path, collapses):
    code, text = call(tmp_path, RUN | {"TRAIN.epochs": 2} | (COLLAPSING if collapses else MOVING))
    assert code == 0, text
    values = summary(tmp_path)
    assert ("the targets have collapsed" in text) == collapses, values
    assert values["val/target_std_at_start"] > 0
    assert values["val/target_rank_at_start"] > 2
