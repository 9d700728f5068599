"""RunFolder: the files of one run. Their names are defined here alone."""

import json
import logging
import platform
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Self

import torch

from mim.engine.cpu import cpu_name, describe_cpu
from mim.io.files import remove_abandoned, write_atomically, write_json, write_text

LOG = logging.getLogger("mim")

PACKAGES = ("torch", "torchvision", "timm", "numpy", "einops")
CONFIG, CHECKPOINTS, TENSORBOARD = "config.yaml", "checkpoints", "tensorboard"
RECONSTRUCTIONS, CONFUSION = "reconstructions", "confusion"  # pictures of an evaluation, by name
RELIABILITY, SEGMENTATIONS = "reliability", "segmentations"
SUBFOLDERS = frozenset({CHECKPOINTS, TENSORBOARD, RECONSTRUCTIONS, CONFUSION, RELIABILITY, SEGMENTATIONS})


class RunFolder:
    """The paths of a run and the plain files in them.

    Attributes: run, the id of the run, and config_text; both are empty until this process has written them.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / CONFIG
        self.metrics = path / "metrics.jsonl"
        self.table = path / "metrics.csv"
        self.trackers = path / "trackers.json"  # the ids of the tracked runs
        self.summary = path / "summary.json"
        self.environment = path / "environment.json"
        self.log = path / "log.txt"
        self.labelled = path / "labelled.txt"  # the labelled images, where only some are
        self.checkpoints = path / CHECKPOINTS
        self.best = self.checkpoints / "best.pt"
        self.tensorboard = path / TENSORBOARD
        self.run, self.config_text = "", ""

    @classmethod
    def of_checkpoint(cls, path: Path) -> Self | None:
        """The run folder around a checkpoint; None where the file lies elsewhere."""
        return cls(path.parent.parent) if path.parent.name == CHECKPOINTS else None

    def create(self, config_text: str, keep_metrics: bool) -> None:
        """Makes the folder with its config, and removes what killed processes left half written.

        Raises ValueError where the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output {self.path} is a file: name a folder")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            remove_abandoned(folder)
        if not keep_metrics:
            self.cut_metrics(-1)
        write_text(self.config, config_text)
        self.config_text = config_text

    def cut_metrics(self, step: int) -> None:
        """Drops the rows after `step`, and damaged lines, such as one that a full disk cut short."""
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

    def set_summary_aside(self, epochs: int) -> None:
        """Renames the summary of a run that is extended to some epochs, as summary-epoch-N.json after its own."""
        try:
            before = json.loads(self.summary.read_text(encoding="utf-8"))["epochs"]
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
            return
        if isinstance(before, int) and before < epochs:
            self.summary.replace(self.path / f"summary-epoch-{before}.json")

    def read_environment(self) -> dict:
        """The content of environment.json; empty where it is missing or damaged."""
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_environment(
        self,
        device: torch.device,
        world_size: int,
        resumed: bool = False,
        origin: dict | None = None,
        extension: dict | None = None,
    ) -> None:
        """Writes what a metric of this run can be traced to: its id, origin, extensions, versions, hardware, git state.

        Args:
            device: of this rank.
            world_size: number of processes.
            resumed: keep the id, the origin and the extensions that the folder has.
            origin: the checkpoint that the weights come from, its run and its step; None for random weights.
            extension: from_epochs, to_epochs and step of the extension that begins or began last; None for none.
        """
        before = self.read_environment() if resumed else {}
        self.run = before.get("run") or uuid.uuid4().hex
        extensions = before.get("extensions", [])
        if extension and all(each["to_epochs"] != extension["to_epochs"] for each in extensions):
            extensions = [*extensions, extension]
        gpu = device.type == "cuda"
        environment = {
            "run": self.run,
            "from": before.get("from", origin),
            "extensions": extensions,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{package: metadata.version(package) for package in PACKAGES},
            "device": torch.cuda.get_device_name(device) if gpu else cpu_name(),
            "cpu": describe_cpu(),
            "cuda": torch.version.cuda if gpu else None,
            "processes": world_size,
            "threads": torch.get_num_threads(),
            "command": sys.argv,
            "git": _git_state(),
        }
        write_json(self.environment, environment)


def _git_state() -> dict | None:
    """The commit of this toolkit's checkout, and whether files differ from it; None without a checkout or git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=10
        )
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.TimeoutExpired):
        return None
