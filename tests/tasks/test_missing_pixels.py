"""Missing pixels (NaN, DATA.nodata) in pretraining: hidden, without loss, and of no effect where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mim import build
from mim.build import load_config
from mim.data.loading.dataset import collate
from mim.engine.protocol import StepContext
from mim.run import train
from mim.structures import PatchMask

TINY = {
    **{"DATA.name": "folder", "DATA.channels": 2, "DATA.image_size": [32, 32], "DATA.batch_size": 4, "TRAIN.batch": 4},
    **{"DATA.workers": 0, "DATA.mean": [0.5, 0.5], "DATA.std": [0.3, 0.3], "TRAIN.epochs": 1, "ENCODER.width": 16},
    **{"TRAIN.precision": "fp32", "ENCODER.depth": 1, "ENCODER.heads": 2, "EVALUATE.knn": 0, "LOG.trackers": []},
    **{"EVALUATE.reconstructions": 3, "SCHEDULE.warmup_epochs": 0},
}
MAE = {"HEAD.width": 16, "HEAD.depth": 1, "HEAD.heads": 2}
SIMMIM = {"HEAD.name": "pixel_shuffle", "ENCODER.hidden": "replace", "MASKER.cell": 8, "LOSS.name": "l1"}
BLOCKS = {**MAE, "MASKER.name": "inverse_block"}  # whose loss counts some of the hidden cells
CORNER = (slice(0, 9), slice(0, 9))


def files(root: Path, gap: object = None, dtype: type = np.float32, number: float = np.nan) -> Path:
    """Eight training and four held-out arrays of two channels; every other one lacks those of `gap` in the second."""
    generator = np.random.default_rng(0)
    for index in range(12):
        path = root / ("train" if index < 8 else "val") / f"{index:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array_HWC = generator.random((32, 32, 2))
        array_HWC = (array_HWC * (1 if dtype == np.float32 else 60000)).astype(dtype)
        if gap is not None and index % 2:
            array_HWC[(*gap, 1)] = number
        np.save(path, array_HWC)
    return root


def task(root: Path, **keys):
    cfg = load_config("quickstart/mae_digits", {**TINY, "DATA.path": root, **keys})
    return build.build_task(cfg, *build.build_data(cfg))


def step(pretraining, rows: range = range(4), batch: int = 4):
    """The loss of some images as rows of a batch, and the mask under which the model saw them."""
    model, masks = pretraining.model.train(), []
    handle = model.register_forward_hook(lambda module, args, output: masks.append(output.mask))
    images = collate([pretraining.train_data[(0, row)] for row in rows])
    loss = pretraining.loss(model, images, StepContext(0, 0, rows.start, batch)).loss
    handle.remove()
    return loss, masks[0]


@pytest.mark.parametrize("keys", [MAE, SIMMIM], ids=["mae", "simmim"])
def test_missing_cells_are_hidden_and_carry_no_loss(tmp_path, keys):
    pretraining = task(files(tmp_path, CORNER), **keys | {"AUGMENT.crop": "centre"})
    loss, mask = step(pretraining)
    cells = -(-9 // pretraining.model.masker.cell)  # along a side of the corner
    assert mask.missing_BHW[1::2].sum(dim=(1, 2)).tolist() == [cells**2] * 2
    assert not mask.missing_BHW[::2].any()
    assert not (mask.missing_BHW & ~mask.hidden_BHW).any()
    assert (~mask.hidden_BHW).sum(dim=(1, 2)).tolist() == [pretraining.model.masker.visible] * 4
    loss.backward()
    assert all(each.grad.isfinite().all() for each in pretraining.model.parameters() if each.grad is not None)


@pytest.mark.parametrize("keys", [MAE, SIMMIM, BLOCKS], ids=["mae", "simmim", "blocks"])
def test_images_without_missing_pixels_are_trained_on_as_ever(tmp_path, monkeypatch, keys):
    pretraining = task(files(tmp_path), **keys)
    loss, mask = step(pretraining)
    assert mask.missing_BHW is not None
    monkeypatch.setattr(PatchMask, "with_missing", lambda mask, pixels_BHW: mask)
    expected, without = step(pretraining)
    assert torch.equal(mask.hidden_BHW, without.hidden_BHW)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("keys", [MAE, SIMMIM, BLOCKS], ids=["mae", "simmim", "blocks"])
def test_loss_does_not_depend_on_how_a_batch_is_split(tmp_path, keys):
    pretraining = task(files(tmp_path, CORNER), **keys | {"AUGMENT.crop": "centre"})
    whole = step(pretraining)[0].detach()
    parts = [step(pretraining, range(start, start + 2))[0].detach() for start in (0, 2)]
    assert sum(map(float, parts)) / 2 == pytest.approx(float(whole), rel=1e-6)


def test_a_sample_counts_by_its_complete_cells(tmp_path):
    """The loss over an image whose right half is missing is that over its left half, by hand."""
    pretraining = task(files(tmp_path, (slice(None), slice(16, 32))), **SIMMIM | {"AUGMENT.crop": "centre"})
    model = pretraining.model.eval()
    images = collate([pretraining.train_data[(0, row)] for row in (1, 3)]).images_BCHW
    img_BCHW = pretraining.preprocess(images)
    hidden_HW = torch.zeros(4, 4, dtype=torch.bool)
    hidden_HW[:, 1:] = True
    mask = PatchMask(hidden_HW.expand(2, 4, 4), 4).with_missing(images.isnan().any(dim=1))
    with torch.no_grad():
        output = model(img_BCHW, mask)
    error_BCHW = (output.prediction - model.target(img_BCHW)).abs()[..., 8:16]
    assert float(output.loss) == pytest.approx(float(error_BCHW.mean()), rel=1e-5)


def test_more_missing_cells_than_hidden_ones_leave_some_visible_as_the_mean(tmp_path):
    pretraining = task(files(tmp_path, (slice(None), slice(4, 32))), **MAE | {"AUGMENT.crop": "centre"})
    loss, mask = step(pretraining)
    assert loss.isfinite()
    assert (mask.missing_BHW & ~mask.hidden_BHW)[1::2].any()
    seen = pretraining.preprocess(torch.full((1, 2, 32, 32), torch.nan))
    assert torch.equal(seen, torch.zeros_like(seen))
    line = pretraining.describe()["missing pixels"]
    assert "in 4 of 8 images that were tried, where 87.5% of the cells have some" in line
    assert "in 4 of them more than the masker hides" in line


@pytest.mark.parametrize("cut", [False, True], ids=["host", "device"])
def test_every_way_to_missing_pixels_gives_the_same_run(tmp_path, cut):
    """NaN in floats, and a number in floats or whole numbers that DATA.nodata names; cropped on the host or device."""
    keys = {**TINY, **MAE, "AUGMENT.on_device": cut, "DATA.path": files(tmp_path / "nan", CORNER)}
    number = {"DATA.path": files(tmp_path / "number", CORNER, number=-9999), "DATA.nodata": -9999}
    whole = {"DATA.path": files(tmp_path / "whole", CORNER, np.uint16, 65535), "DATA.nodata": 65535}
    nan, named, levels = (
        train("quickstart/mae_digits", keys | change, tmp_path / f"run-{index}", quiet=True)
        for index, change in enumerate(({}, number, whole))
    )
    for metric in ("train/loss", "val/loss", "val/baseline"):
        assert nan[metric] == named[metric]
        assert levels[metric] == pytest.approx(nan[metric], rel=0.1)
    assert "missing pixels   in 4 of 8 images" in (tmp_path / "run-2" / "log.txt").read_text(encoding="utf-8")
    assert (tmp_path / "run-2" / "reconstructions").exists()
