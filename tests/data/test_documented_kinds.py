"""The documented commands that pretrain on files of other kinds, with a small model in place of ViT-B."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import tifffile
import yaml
from processes import ROOT, TINY
from rasterio.transform import from_origin
from safetensors import safe_open

SIZES = {key: value for key, value in TINY.items() if key.startswith(("ENCODER.", "HEAD."))}
SMALL = SIZES | {
    "DATA.image_size": "[32,32]",
    "DATA.batch_size": 8,
    "DATA.workers": 2,
    "TRAIN.batch": 8,
    "TRAIN.epochs": 1,
    "TRAIN.precision": "fp32",
    "SCHEDULE.warmup_epochs": 0,
    "ENCODER.patch": 8,
    "MASKER.cell": 8,
    "EVALUATE.knn": 0,
    "EVALUATE.reconstructions": 4,
    "DATA.val_share": 0.2,
}


def _mim(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, "-m", "mim", *words)
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def pretrain(folder: Path, output: str, **keys: object) -> dict:
    """Runs the command of the page that writes to `output`, in a folder where its data lie; returns DATA of the run."""
    text = (ROOT / "docs/own-images.md").read_text(encoding="utf-8").replace("/data/", "")
    (command,) = re.findall(rf"^mim-train [^`]*?--output {output} [^`]*(?=\n```)", text, flags=re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    _mim(folder, "train", *words[1:], *(str(word) for pair in (SMALL | keys).items() for word in pair))
    assert list((folder / output / "reconstructions").glob("*.png"))
    return yaml.safe_load((folder / output / "config.yaml").read_text(encoding="utf-8"))["DATA"]


def log(run: Path) -> str:
    return (run / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_documented_command_pretrains_on_stacks_of_twelve_pages(tmp_path):
    (tmp_path / "stacks").mkdir()
    generator = np.random.default_rng(0)
    stacks = generator.integers(100, 3000, (24, 12, 40, 48)).astype(np.uint16)
    for number, stack in enumerate(stacks):
        options = (
            {"compression": "zlib", "tile": (16, 16)} if number % 2 else {"ome": True, "metadata": {"axes": "CYX"}}
        )
        tifffile.imwrite(tmp_path / f"stacks/{number}.tif", stack, photometric="minisblack", **options)
    data = pretrain(tmp_path, "runs/stacks")
    assert data["scale"] == "percentile"
    stretched = []
    for stack in stacks:
        low, high = np.percentile(stack, (1, 99), axis=(1, 2), keepdims=True)
        stretched.append(((stack - low) / (high - low)).clip(0, 1))
    assert np.allclose(data["mean"], np.mean(stretched, axis=(0, 2, 3)), atol=0.02)  # of the training images alone
    _mim(tmp_path, "reconstruct", "runs/stacks", "stacks/0.tif", "--output", "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    _mim(tmp_path, "convert", "runs/stacks", "weights.safetensors", "--to", "timm")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:  # mean and std are of values under that scale
        assert yaml.safe_load(file.metadata()["mim_config"])["DATA"]["scale"] == "percentile"


@pytest.mark.slow
def test_documented_command_pretrains_on_geotiffs_of_five_bands_with_nodata(tmp_path):
    (tmp_path / "fields").mkdir()
    generator = np.random.default_rng(0)
    place = from_origin(500000, 4600000, 10, 10)
    profile = {"driver": "GTiff", "dtype": "int16", "count": 5, "height": 64, "width": 64, "nodata": -32768}
    present = []
    for number in range(24):
        bands = generator.integers(0, 4000, (5, 64, 64)).astype(np.int16)
        bands[:, : 8 * (number % 3)] = -32768
        present.append(bands[:, bands[0] != -32768])
        path = tmp_path / f"fields/{number}.tif"
        with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=place) as tile:
            tile.write(bands)
            tile.descriptions = ("blue", "green", "red", "edge", "infrared")
    data = pretrain(tmp_path, "runs/fields")
    assert data["channels_from"] == ["red", "edge", "infrared"]
    assert np.allclose(data["mean"], np.concatenate(present, axis=1).mean(axis=1)[2:], rtol=0.02)
    assert "missing pixels   in" in log(tmp_path / "runs/fields")


@pytest.mark.slow
def test_documented_command_pretrains_on_an_hdf5_file_of_2000_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2000, 40, 48, 3)).astype(np.uint8)
    with h5py.File(tmp_path / "plates.h5", "w") as file:
        file.create_dataset("train/images", data=images, chunks=(1, 40, 48, 3))
    pretrain(tmp_path, "runs/plates", **{"TRAIN.epochs": 1, "TRAIN.batch": 64, "DATA.batch_size": 64})
    train, held_out = re.search(
        r"([\d,]+) to train, (\d+) held out; 3 x 32 x 32", log(tmp_path / "runs/plates")
    ).groups()
    assert int(train.replace(",", "")) + int(held_out) == 2000
