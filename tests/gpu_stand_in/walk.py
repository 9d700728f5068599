"""Walk: short runs and commands on a stand-in for a GPU, on which all host code runs and nothing is computed.

  $MIM_FAKE_GPU python tests/gpu_stand_in/walk.py FOLDER [NAME ...]

From its third step on, a run must not make the host wait for the device within a step: PyTorch then raises. Each name
of RUNS and COMMANDS is a path, walked in this order in one process; those of COMMANDS look at the first runs. A line
each: `walked NAME`, with its guarded steps and the launches of the last one, or `failed NAME: error`.
"""

import contextlib
import ctypes
import importlib
import os
import sys
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mim.engine.optim.steady import Steady
from mim.engine.step_status import StepMonitor
from mim.engine.trainer import Trainer
from mim.run import train

Keys = dict[str, object]
WARM = 2  # steps, in which libraries and optimizers prepare themselves
SMALL: Keys = {
    **{"DATA.mean": "[0.3]", "DATA.std": "[0.35]", "DATA.batch_size": 120, "TRAIN.batch": 240, "TRAIN.epochs": 1},
    **{"ENCODER.depth": 1, "EVALUATE.samples": 16, "EVALUATE.every_epochs": 1, "CHECKPOINT.every_epochs": 1},
    **{"LOG.tensorboard": False, "SCHEDULE.warmup_epochs": 0},
}
NO_VOTE: Keys = {"EVALUATE.knn": 0}  # among classes that are what memory held
MAE, SIMMIM, FINETUNE, PROBE = "quickstart/mae_digits", "quickstart/simmim_digits", "finetune/digits", "probe/digits"
WINDOWS: Keys = {"ENCODER.depths": "[1, 1]", "ENCODER.heads": "[2, 4]", "ENCODER.width": 16, "DATA.channels": 1}
RUNS: dict[str, tuple[str, Keys]] = {  # path: recipe and keys; {here} is the folder of the runs
    "mae": (MAE, {"DATA.workers": 2, "EVALUATE.at_start": True}),
    "finetune": (FINETUNE, {"TRAIN.ema": 0.9, "AUGMENT.mixup": 0.8, "AUGMENT.cutmix": 1.0}),
    "probe": (PROBE, {}),
    "fp16": (MAE, {"TRAIN.precision": "fp16", "TRAIN.clip": 1.0, "TRAIN.ema": 0.9}),
    "deterministic": (MAE, {"TRAIN.deterministic": True}),
    "simmim": (SIMMIM, {"ENCODER.drop_path": 0.1}),
    "checkpointing": (SIMMIM, {"TRAIN.activation_checkpointing": True, "ENCODER.depth": 2}),
    "swin": ("cifar10/simmim_swin_tiny", {"DATA.name": "digits", **WINDOWS}),
    "swin v2": ("cifar10/simmim_swin_tiny", {"DATA.name": "digits", "ENCODER.name": "swin_v2", **WINDOWS}),
    "cross_attention": (MAE, {"HEAD.name": "cross_attention", "HEAD.share": 0.25}),
    "hog": ("digits/hog", {}),
    "lowpass": ("digits/lowpass", {}),
    "fourier": ("digits/fourier", {}),
    "teacher": ("digits/teacher", {"TARGET.checkpoint": "{here}/mae/checkpoints/step-5.pt"}),
    "follower": ("digits/follower_8_masks", {"TARGET.layers": 1}),
    "ijepa": ("digits/ijepa", {}),
    "clusters": ("digits/clusters", {}),
    "on device": (MAE, {"AUGMENT.on_device": True, "DATA.repeats": 2, "DATA.masks": 2}),
    "missing pixels": (MAE, {"DATA.name": "folder", "DATA.path": "{here}/arrays", "EVALUATE.knn": 0}),
    "muon": (MAE, {"OPTIMIZER.name": "muon", "TRAIN.clip": 1.0, "TRAIN.precision": "fp16"}),
    "schedulefree": (MAE, {"OPTIMIZER.name": "schedulefree"}),
    "lion": (MAE, {"OPTIMIZER.name": "timm", "OPTIMIZER.optimizer": "lion"}),
    "segmentation": (
        "probe/digits",
        {
            **{"DATA.name": "folder", "DATA.path": "{here}/pictures", "LABELS.masks": "{here}/masks"},
            **{"LABELS.names": "[paper, ink]", "READOUT.name": "segment_linear", "EVALUATE.resamples": 0},
        },
    ),
    "upernet": (
        "finetune/digits",
        {
            **{"DATA.name": "folder", "DATA.path": "{here}/pictures", "LABELS.masks": "{here}/masks"},
            **{"LABELS.names": "[paper, ink]", "READOUT.name": "segment_upernet", "ENCODER.depth": 4},
        },
    ),
}
COMMANDS: dict[str, tuple[str, ...]] = {  # path: command and its words
    "resume": ("train", "--config", MAE, "--output", "{here}/mae", "--extend", "2"),
    "evaluate knn": ("evaluate", "knn", "{here}/mae"),
    "evaluate dense": ("evaluate", "dense", "{here}/mae", "--output", "{here}/dense"),
    "evaluate retrieval": ("evaluate", "retrieval", "{here}/mae", "--output", "{here}/retrieval"),
    "evaluate patches": ("evaluate", "patches", "{here}/segmentation"),
    "evaluate classify": ("evaluate", "classify", "{here}/finetune"),
    "evaluate corruptions": ("evaluate", "corruptions", "{here}/finetune", "--samples", "16"),
    "evaluate predict": ("evaluate", "predict", "{here}/finetune", "--images", "{here}/pictures"),
    "reconstruct": ("reconstruct", "{here}/mae", "--images", "{here}/pictures", "--output", "{here}/sheet.png"),
    "export": ("export", "{here}/mae", "{here}/encoder.pt2"),
    "benchmark": ("benchmark", "--config", MAE, "--folder", "{here}/benchmark", "--rounds", "1", "--steps", "1"),
    "plan": ("plan", "--config", MAE),
}


def main(folder: str, *names: str) -> int:
    """Exit codes: 0 all walked; 1 some failed."""
    torch.backends.cudnn.enabled = False  # the stand-in has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    here, failed = Path(folder), 0
    here.mkdir(parents=True, exist_ok=True)
    _write_images(here)
    for name in names or (*RUNS, *COMMANDS):
        try:
            print("walked", name, run_of(name, here) if name in RUNS else command_of(name, here), flush=True)
        except Exception as error:
            failed += 1
            text = str(error).strip().splitlines()
            print(f"failed {name}: {type(error).__name__}: {text[0] if text else ''}", flush=True)
            traceback.print_exc(file=sys.stdout)
    return int(failed > 0)


def run_of(name: str, here: Path) -> str:
    """Trains; the number of guarded steps, and the launches of the last one."""
    recipe, keys = RUNS[name]
    small = {key: value for key, value in SMALL.items() if key not in ("ENCODER.depth",) or "depths" not in str(keys)}
    small |= {} if recipe in (FINETUNE, PROBE) else NO_VOTE
    pairs = {key: str(value).replace("{here}", str(here)) for key, value in {**small, **keys}.items()}
    with guarded_steps() as steps:
        train(recipe, pairs, output=here / name, quiet=True)
    return f"{len(steps)} steps, {steps[-1] if steps else ''}"


def command_of(name: str, here: Path) -> str:
    """Runs a command in this process. Raises RuntimeError with its exit code where it failed."""
    command, *words = COMMANDS[name]
    tool = importlib.import_module(f"mim_toolkit.{command}")
    more = _resumed(here) if name == "resume" else []
    code = tool.main([word.replace("{here}", str(here)) for word in words] + more)
    if code:
        raise RuntimeError(f"exit code {code}")
    return ""


def _resumed(here: Path) -> list[str]:
    pairs = {**SMALL, **NO_VOTE, **RUNS["mae"][1]}
    return [str(word) for pair in pairs.items() for word in pair]


@contextlib.contextmanager
def guarded_steps():
    """Inside, the host may not wait for the device within a step. Gives the launches of each guarded step."""
    step, look, steady_step, counts = Trainer._train_step, StepMonitor.look, Steady.step, []

    def guarded(self: Trainer) -> None:
        if self.step - self.first < WARM:
            step(self)
            return
        before = launches()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(launches() - before)

    def good(self: StepMonitor, drain: bool = False) -> list:  # values are what memory held
        quiet = {"harmful": False, "end_requested": False, "save_due": False}
        return [replace(status, **quiet) for status in look(self, drain)]

    def taken(self: Steady, closure=None) -> None:
        if not self.state:
            self.found_inf = None  # else what memory held may skip the first step
        steady_step(self, closure)

    Trainer._train_step, StepMonitor.look, Steady.step = guarded, good, taken  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Trainer._train_step, StepMonitor.look, Steady.step = step, look, steady_step  # type: ignore[method-assign]


def launches() -> Counter:
    """Kernel launches, matrix products and copies so far."""
    runtime = ctypes.CDLL(os.environ["LD_PRELOAD"])
    runtime.fake_count.restype = ctypes.c_long
    return Counter(
        {"launches": runtime.fake_count(0), "products": runtime.fake_count(1), "copies": runtime.fake_count(2)}
    )


def _write_images(here: Path) -> None:
    """64 arrays with missing pixels, and 240 pictures of digits with a mask each."""
    from PIL import Image
    from sklearn.datasets import load_digits

    for name in ("arrays", "pictures", "masks"):
        (here / name).mkdir(exist_ok=True)
    chance = np.random.default_rng(0)
    for number, levels_HW in enumerate(load_digits().images[:720]):
        pixels_HW = np.kron(levels_HW * (255 / 16), np.ones((4, 4))).astype(np.uint8)
        if number < 240:
            Image.fromarray(pixels_HW).save(here / "pictures" / f"{number:03d}.png")
            Image.fromarray((pixels_HW > 127).astype(np.uint8)).save(here / "masks" / f"{number:03d}.png")
        floats_HW = (pixels_HW / 255).astype(np.float32)
        floats_HW[chance.random(floats_HW.shape) < 0.02] = np.nan
        np.save(here / "arrays" / f"{number:03d}.npy", floats_HW)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
