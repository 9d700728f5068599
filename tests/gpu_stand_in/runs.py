"""Runs: small recipes of digits, each trained for some steps, eager; no step from the third on waits for the device."""

import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from guard import Around, guard_steps
from PIL import Image
from sklearn.datasets import load_digits

from mim.run import train

Keys = dict[str, object]
SMALL: Keys = {  # 5 steps of 2 micro-batches
    **{"DATA.mean": "[0.3]", "DATA.std": "[0.35]", "DATA.batch_size": 120, "TRAIN.batch": 240, "TRAIN.epochs": 1},
    **{"EVALUATE.samples": 16, "EVALUATE.every_epochs": 1, "CHECKPOINT.every_epochs": 1, "LOG.tensorboard": False},
    **{"SCHEDULE.warmup_epochs": 0},
}
MAE, SIMMIM, FINETUNE, PROBE = "quickstart/mae_digits", "quickstart/simmim_digits", "finetune/digits", "probe/digits"
FEW: Keys = {"DATA.batch_size": 20, "TRAIN.batch": 20}  # of the labelled digits
SWIN: Keys = {
    **{"DATA.name": "digits", "DATA.channels": 1, "ENCODER.depths": "[1, 1]", "ENCODER.heads": "[2, 4]"},
    **{"ENCODER.width": 16},
}
MASKS: Keys = {
    **{"DATA.name": "folder", "DATA.path": "{here}/pictures", "LABELS.masks": "{here}/masks"},
    **{"LABELS.names": "[paper, ink]", "EVALUATE.resamples": 0},
}
RUNS: dict[str, tuple[str, Keys]] = {  # path: recipe and keys; {here} is the folder of the runs
    "mae": (MAE, {"EVALUATE.at_start": True}),
    "simmim": (SIMMIM, {"ENCODER.drop_path": 0.1}),
    "finetune": (FINETUNE, {**FEW, "TRAIN.ema": 0.9, "AUGMENT.mixup": 0.8, "AUGMENT.cutmix": 1.0}),
    "probe": (PROBE, FEW),
    "segmentation": (PROBE, {**FEW, **MASKS, "READOUT.name": "segment_linear"}),
    "upernet": (FINETUNE, {**FEW, **MASKS, "READOUT.name": "segment_upernet", "ENCODER.depth": 4}),
    "fp16 clipped averaged": (MAE, {"TRAIN.precision": "fp16", "TRAIN.clip": 1.0, "TRAIN.ema": 0.9}),
    "swin": ("cifar10/simmim_swin_tiny", SWIN),
    "swin v2": ("cifar10/simmim_swin_tiny", {**SWIN, "ENCODER.name": "swin_v2"}),
    "cross_attention": (MAE, {"HEAD.name": "cross_attention", "HEAD.share": 0.25}),
    "recomputed": (SIMMIM, {"TRAIN.activation_checkpointing": True, "ENCODER.depth": 2, "ENCODER.drop_path": 0.1}),
    "deterministic": (MAE, {"TRAIN.deterministic": True}),
    "hog": ("digits/hog", {}),
    "lowpass": ("digits/lowpass", {}),
    "fourier": ("digits/fourier", {}),
    "teacher": ("digits/teacher", {"TARGET.checkpoint": "{here}/mae/checkpoints/step-5.pt"}),
    "follower": ("digits/follower_8_masks", {"TARGET.layers": 1}),
    "ijepa": ("digits/ijepa", {}),
    "clusters": ("digits/clusters", {}),
    "muon": (MAE, {"OPTIMIZER.name": "muon", "TRAIN.clip": 1.0, "TRAIN.precision": "fp16"}),
    "schedulefree": (MAE, {"OPTIMIZER.name": "schedulefree"}),
    "lion": (MAE, {"OPTIMIZER.name": "timm", "OPTIMIZER.optimizer": "lion", "OPTIMIZER.eps": "default"}),
    "crops on the device": (MAE, {"AUGMENT.on_device": True, "DATA.repeats": 2, "DATA.masks": 2}),
    "missing pixels": (
        MAE,
        {
            **{"DATA.name": "folder", "DATA.path": "{here}/arrays", "EVALUATE.knn": 0},
            **{"DATA.batch_size": 60, "TRAIN.batch": 120},
        },
    ),
}


def run_of(name: str, here: Path) -> str:
    """Walks a run of RUNS."""
    return walk(*RUNS[name], folder(name, here), here)


def walk(recipe: str, keys: Keys, output: Path, here: Path, around: Around = nullcontext) -> str:
    """Trains from the first step; the number of guarded steps, and the counts of the last one. around: of each."""
    shutil.rmtree(output, ignore_errors=True)
    with guard_steps(around) as steps:
        train(recipe, pairs(keys, here), output, quiet=True)
    if not steps:
        raise RuntimeError("no step was guarded")
    return f"{len(steps)} steps, {steps[-1]}"


PATHS = {name: partial(run_of, name) for name in RUNS}


def folder(name: str, here: Path) -> Path:
    """The run folder of a path."""
    return here / name.replace(" ", "_")


def pairs(keys: Keys, here: Path) -> dict[str, str]:
    """A path's keys with those that all share; an encoder with `depths` has no `depth`."""
    depth = {} if "ENCODER.depths" in keys else {"ENCODER.depth": 1}
    return {key: str(value).replace("{here}", str(here)) for key, value in {**SMALL, **depth, **keys}.items()}


def write_images(here: Path) -> None:
    """720 arrays with missing pixels, and 240 pictures of digits with a mask each."""
    for name in ("arrays", "pictures", "masks"):
        (here / name).mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    for number, levels_HW in enumerate(load_digits().images[:720]):
        pixels_HW = np.kron(levels_HW * (255 / 16), np.ones((4, 4))).astype(np.uint8)
        if number < 240:
            Image.fromarray(pixels_HW).save(here / "pictures" / f"{number:03d}.png")
            Image.fromarray((pixels_HW > 127).astype(np.uint8)).save(here / "masks" / f"{number:03d}.png")
        floats_HW = (pixels_HW / 255).astype(np.float32)
        floats_HW[chance.random(floats_HW.shape) < 0.02] = np.nan
        np.save(here / "arrays" / f"{number:03d}.npy", floats_HW)
