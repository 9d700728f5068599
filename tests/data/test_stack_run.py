"""The documented command that pretrains on stacks of 12 pages, with a small model in place of ViT-B."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from processes import ROOT, TINY
from safetensors import safe_open

SIZES = {key: value for key, value in TINY.items() if key.startswith(("ENCODER.", "HEAD."))}
SMALL = SIZES | {
    "DATA.image_size": "[32,32]",
    "DATA.batch_size": 8,
    "DATA.workers": 2,
    "TRAIN.batch": 8,
    "TRAIN.epochs": 3,
    "TRAIN.precision": "fp32",
    "SCHEDULE.warmup_epochs": 1,
    "ENCODER.patch": 8,
    "MASKER.cell": 8,
    "EVALUATE.reconstructions": 0,
}


def _mim(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, "-m", "mim", *words)
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


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
    text = (ROOT / "docs/own-images.md").read_text().partition("## TIFF and channels")[2]
    command = re.search(r"^mim-train .*?--output runs/stacks .*?(?=\n```)", text, flags=re.DOTALL | re.MULTILINE)
    words = shlex.split(command.group().replace("\\\n", " "))
    assert words[0] == "mim-train"
    pairs = [str(word) for pair in SMALL.items() for word in pair]
    _mim(tmp_path, "train", *words[1:], *pairs)
    data = yaml.safe_load((tmp_path / "runs/stacks/config.yaml").read_text())["DATA"]
    assert data["scale"] == "percentile"
    stretched = []
    for stack in stacks:
        low, high = np.percentile(stack, (1, 99), axis=(1, 2), keepdims=True)
        stretched.append(((stack - low) / (high - low)).clip(0, 1))
    assert np.allclose(data["mean"], np.mean(stretched, axis=(0, 2, 3)), atol=0.01)  # of the training images alone
    _mim(tmp_path, "reconstruct", "runs/stacks", "stacks/0.tif", "--output", "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    _mim(tmp_path, "convert", "runs/stacks", "weights.safetensors", "--to", "timm")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:  # mean and std are of values under that scale
        assert yaml.safe_load(file.metadata()["mim_config"])["DATA"]["scale"] == "percentile"
