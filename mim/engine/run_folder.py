"""RunFolder: the files of one run, under the names that docs and tools know.

config.yaml  environment.json  log.txt  metrics.jsonl  summary.json  labelled.txt
checkpoints/  tensorboard/  and one of each kind of picture: reconstructions/  confusion/
"""

import json
import logging
import platform
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path

import torch

from mim.io.files import remove_abandoned, write_atomically, write_json

LOG = logging.getLogger("mim")

PACKAGES = ("torch", "torchvision", "timm", "numpy", "einops")


class RunFolder:
    """The paths of a run and the plain files in them."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.environment = path / "environment.json"
        self.log = path / "log.txt"
        self.labelled = path / "labelled.txt"  # the images of a run that trains on some of the labels
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def create(self) -> None:
        """Makes the folder, and removes what killed processes left half written in it. Raises ValueError where that
        path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output {self.path} is a file: name a folder")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            remove_abandoned(folder)

    def cut_metrics(self, step: int) -> None:
        """Drops what was logged after `step`, and lines that are damaged: cut short by a full disk, say."""
        if not self.metrics.exists():
            return
        kept, damaged = [], 0
        for line in self.metrics.read_bytes().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            LOG.warning("%s: %d damaged line%s left out", self.metrics, damaged, "s" * (damaged > 1))
        write_atomically(self.metrics, lambda file: file.write(b"".join(kept)))

    @property
    def identity(self) -> str | None:
        """The id of the run in this folder, which stays with it wherever the folder goes; None before it has one."""
        return self._recorded().get("run")

    def _recorded(self) -> dict:
        try:
            found = json.loads(self.environment.read_text())
        except (OSError, ValueError):  # absent, or damaged: it is written anew
            return {}
        return found if isinstance(found, dict) else {}

    def write_environment(
        self, device: torch.device, world_size: int, fresh: bool = True, origin: dict | None = None
    ) -> None:
        """Which run this is, what it started from, versions, device and git state, so that a figure can be traced to
        what made it. A run that goes on keeps its id and its origin.
        """
        before = {} if fresh else self._recorded()
        environment = {
            "run": before.get("run") or uuid.uuid4().hex,
            "from": before.get("from", origin),
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{package: metadata.version(package) for package in PACKAGES},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "processes": world_size,
            "threads": torch.get_num_threads(),
            "command": sys.argv,
            "git": _git_state(),
        }
        write_json(self.environment, environment)


def _git_state() -> dict | None:
    """Commit of this toolkit's checkout and whether files differ from it; None where it is no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=10)
        return done.stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
