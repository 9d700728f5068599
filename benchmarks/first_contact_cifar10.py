"""CIFAR-10 in a given time: MAE and its fine-tuning, with as many epochs as fit, and the accuracy over seconds.

The recipe is the row MAE of configs/studies/cifar10/transfer_gpu.yaml. Before each of the two runs, a trial of two
epochs measures how long the start and an epoch take; so each schedule ends when the time does.
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "configs" / "studies" / "cifar10" / "transfer_gpu.yaml"
PRETRAINING_SHARE = 0.55  # of the seconds of both runs
TRIAL_EPOCHS = 2
COMPILE_FROM_S = 600.0  # with less time, compilation costs more than it gains
SPARE_S = 10.0  # for the last evaluation
EVALUATIONS = 6  # in a run
GRACE_S = 20.0  # for a run that was asked to end, which writes a checkpoint
TINY = {
    **{"DATA.batch_size": 16, "TRAIN.batch": 16, "DATA.workers": 0, "ENCODER.patch": 8, "ENCODER.width": 16},
    **{"ENCODER.depth": 1, "ENCODER.heads": 2},
}
TINY_HEAD = {"MASKER.cell": 8, "HEAD.width": 16, "HEAD.depth": 1, "HEAD.heads": 2}
Save = Callable[[dict[str, Any]], None]


def train_cifar10(data: Path | None, scratch: Path, seconds: float, tiny: bool, save: Save) -> dict[str, Any]:
    """Pretrains and fine-tunes, and returns the figures, which `save` also gets after each of the runs."""
    clock = Clock(seconds)
    scratch.mkdir(parents=True, exist_ok=True)
    source = noise_images(scratch / "images") if data is None else data
    packed = packed_images(source, scratch)
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    common = {"DATA.name": "packed", "DATA.path": packed, "DATA.workers": max((os.cpu_count() or 2) - 2, 1)}
    common |= {"TRAIN.compile": seconds >= COMPILE_FROM_S, "LOG.tensorboard": False, "LOG.every_steps": 10}
    common |= TINY if tiny else {}
    figures: dict[str, Any] = {"packing_s": clock.seconds, "compiled": common["TRAIN.compile"]}

    start = study["STARTS"]["MAE"]
    keys = start["set"] | common | {"EVALUATE.reconstructions": 0} | (TINY_HEAD if tiny else {})
    share_s = PRETRAINING_SHARE * clock.left
    pretraining = Phase("pretraining", start["config"], keys, scratch, tiny)
    figures["pretraining"] = pretraining.run(clock, clock.seconds + share_s)
    save(figures)

    (protocol,) = study["PROTOCOLS"].values()
    keys = protocol["set"] | common | {"INIT.checkpoint": pretraining.checkpoint}
    tuning = Phase("fine-tuning", protocol["config"], keys, scratch, tiny)
    figures["fine-tuning"] = tuning.run(clock, seconds - SPARE_S)
    save(figures)
    return figures | {"seconds": clock.seconds, "published": 89.77}


class Clock:
    """Seconds since it was made, and those that are left."""

    def __init__(self, total: float):
        self.total, self._start = total, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return round(time.monotonic() - self._start, 1)

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 where none is."""
        return self.total - self.seconds


class Phase:
    """A run with as many epochs as fit into its time, after a trial that measures them."""

    def __init__(self, name: str, config: str, keys: Mapping[str, Any], scratch: Path, tiny: bool):
        self.name, self.keys, self.tiny = name, dict(keys), tiny
        self.config = (STUDY.parent / config).resolve()
        self.trial_folder, self.folder = scratch / f"{name}-trial", scratch / name

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the run."""
        folder = self.folder / "checkpoints"
        return folder / (folder / "last").read_text(encoding="utf-8").strip()

    def run(self, clock: Clock, end: float) -> dict[str, Any]:
        """Trains until about `end` on the clock. Raises RuntimeError where training fails."""
        begin = clock.seconds
        trial = {"TRAIN.epochs": TRIAL_EPOCHS, "SCHEDULE.warmup_epochs": 0, "EVALUATE.samples": 128}
        self._train(self.trial_folder, trial | {"EVALUATE.every_epochs": TRIAL_EPOCHS}, clock.left)
        summary = json.loads((self.trial_folder / "summary.json").read_text(encoding="utf-8"))
        steady = max(row.get("time/images_per_s", 0.0) for row in rows(self.trial_folder)) or summary["images_per_s"]
        epoch_s = summary["images_seen"] / TRIAL_EPOCHS / steady
        start_s = clock.seconds - begin - TRIAL_EPOCHS * epoch_s
        epochs = 2 if self.tiny else max(1, int((end - clock.seconds - start_s) / epoch_s))
        epochs = min(epochs, int(self.keys.get("TRAIN.epochs", 100)))
        keys = {"TRAIN.epochs": epochs, "SCHEDULE.warmup_epochs": epochs // 20}
        offset = clock.seconds
        code = self._train(self.folder, keys | {"EVALUATE.every_epochs": max(1, epochs // EVALUATIONS)}, clock.left)
        names = ("epoch", "seconds", "knn/top1", "val/top1", "val/loss")
        progress = [{name: row[name] for name in names if name in row} for row in rows(self.folder)]
        progress = [row for row in progress if {"knn/top1", "val/top1"} & row.keys()]
        figures = {"images_per_s": round(steady), "start_s": round(start_s, 1), "epochs": epochs, "exit_code": code}
        return figures | {"from_s": offset, "to_s": clock.seconds, "progress": progress}

    def _train(self, output: Path, keys: Mapping[str, Any], seconds: float) -> int:
        """The exit code of tools/train.py, which is asked to end when the seconds are over."""
        words = [str(word) for pair in (self.keys | dict(keys)).items() for word in map(_word, pair)]
        command = [sys.executable, "tools/train.py", "--config", str(self.config), "--output", str(output), *words]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            code = process.wait(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=GRACE_S)
            if code == -signal.SIGTERM:  # it had not come so far as to end by itself
                raise RuntimeError(f"{self.name}: {seconds:.0f} s were over before it had begun to train") from None
        finally:
            process.kill()
        if code not in (0, 75):  # 75: it ended as it was asked to
            raise RuntimeError(f"{self.name} ended with exit code {code}")
        return code


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote to metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def packed_images(source: Path, scratch: Path) -> Path:
    """The images as pixels of one file. source: a packed folder, a folder with train/ and val/, or a zip of one."""
    if (source / "train.index").is_file():
        return source
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as file:
            file.extractall(scratch / "zip")
        source = next(path.parent for path in sorted((scratch / "zip").rglob("train")) if path.is_dir())
    packed = scratch / "packed"
    command = [sys.executable, "tools/pack.py", str(source), str(packed), "--short-side", "0"]
    subprocess.run(command, cwd=ROOT, check=True)
    return packed


def noise_images(folder: Path) -> Path:
    """A few random images, for a walk through the steps."""
    from PIL import Image

    for split, count in {"train": 32, "val": 8}.items():
        for name in ("cat", "dog"):
            path = folder / split / name
            path.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.effect_noise((32, 32), 50).convert("RGB").save(path / f"{number}.png")
    return folder


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
