"""Real training runs for tests: tools/train.py on a tiny model of the digits, in this process, another, or torchrun."""

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mim.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "quickstart" / "mae_digits.yaml"
FINETUNE, PROBE = (ROOT / "configs" / task / "digits.yaml" for task in ("finetune", "probe"))
Keys = dict[str, object]
DIGITS: Keys = {"DATA.mean": "[0.3089587]", "DATA.std": "[0.34818]"}  # as a run of seed 0 estimates, in .2 seconds
ESTIMATED: Keys = {"DATA.mean": "estimate", "DATA.std": "estimate"}
TINY: Keys = {  # of the quickstart's recipes: 14 steps an epoch
    **DIGITS,
    "DATA.batch_size": 96,
    "TRAIN.batch": 96,
    "ENCODER.width": 16,
    "ENCODER.depth": 2,
    "ENCODER.heads": 2,
    "HEAD.width": 16,
    "HEAD.depth": 1,
    "HEAD.heads": 2,
    "EVALUATE.at_start": False,
    "EVALUATE.reconstructions": 0,
    "EVALUATE.samples": 63,
    "EVALUATE.knn_bank": 64,
    "CHECKPOINT.every_epochs": 1,
    "LOG.tensorboard": False,
    "LOG.every_steps": 1,
    "TRAIN.precision": "fp32",
    "TRAIN.epochs": 1,
}
TINY_CLASSIFIER: Keys = {  # of FINETUNE and PROBE: 80 labelled digits, 5 steps an epoch
    **DIGITS,
    "ENCODER.width": 16,
    "ENCODER.depth": 2,
    "ENCODER.heads": 2,
    "LABELS.per_class": 8,
    "DATA.batch_size": 16,
    "TRAIN.batch": 16,
    "TRAIN.epochs": 2,
    "TRAIN.precision": "fp32",
    "EVALUATE.every_epochs": 1,
    "EVALUATE.confusion": False,
    "CHECKPOINT.every_epochs": 1,
    "LOG.tensorboard": False,
    "LOG.every_steps": 1,
}
PARTS = (
    "step",
    "model",
    "ema",
    "optimizer",
    "scaler",
    "meter",
)  # of a checkpoint: the same however often a run was killed


def arguments(output: Path, keys: Keys, recipe: Path) -> list[str]:
    pairs = [word for key, value in keys.items() for word in (key, str(value))]
    return ["--config", str(recipe), "--output", str(output), *pairs]


def command(output: Path, keys: Keys, recipe: Path = RECIPE) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "train.py"), *arguments(output, keys, recipe)]


def torchrun(processes: int, output: Path, keys: Keys) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*launcher, "--master-addr=127.0.0.1", f"--master-port={port}", *command(output, keys)[1:]]


def start(words: list[str], *path: Path) -> subprocess.Popen:
    python_path = os.pathsep.join(map(str, (ROOT, *path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def run(words: list[str], *path: Path, timeout: int = 180) -> tuple[int, str]:
    """Exit code and output of a process that must end by itself."""
    process = start(words, *path)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output


def tool(name: str):
    """The module of a command, whose `main` runs it in this process."""
    return importlib.import_module(f"mim_toolkit.{name}")


def evaluate(*words) -> tuple[int, str]:
    """Exit code and output of tools/evaluate.py in this process."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("evaluate").main([str(word) for word in words])
    return code, text.getvalue()


def call(output: Path, keys: Keys, recipe: Path = RECIPE, flags: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and output of tools/train.py in this process, which saves the seconds of starting another."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("train").main([*flags, *arguments(output, keys, recipe)])
    return code, text.getvalue()


@contextlib.contextmanager
def dying_at(step: int):
    """Inside, training in this process ends before that step as a killed process does: without a word or a file."""
    take_step = Trainer._train_step

    def die(trainer: Trainer) -> None:
        if trainer.step == step:
            raise MemoryError
        take_step(trainer)

    Trainer._train_step = die
    try:
        with pytest.raises(MemoryError):
            yield
    finally:
        Trainer._train_step = take_step


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[float]:
    return [row["train/loss"] for row in rows(output) if "train/loss" in row]


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


def last_checkpoint(output: Path) -> Path:
    folder = output / "checkpoints"
    return folder / (folder / "last").read_text().strip()


def last_state(output: Path) -> dict:
    return torch.load(last_checkpoint(output), weights_only=True)


def same(ours: object, theirs: object, name: str = "") -> None:
    """Asserts that two states are equal, to the bit; says where they are not."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            same(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), name
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, f"{name}[{index}]")
    else:
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, name


def timeless_rows(output: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    clock = ("seconds", "time/")
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in rows(output)]
