"""Runs: run folders, found and read. What is wrong with one is told in words, and ends nothing."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from mim import config
from mim.config import schema
from mim.engine.run_folder import RunFolder
from mim.lab.comparison.formatting import first_line, shown_path
from mim.metric_keys import VAL_TOP1

WITHOUT_RUNS = frozenset({"checkpoints", "tensorboard", "reconstructions", "confusion", "__pycache__"})
NEEDED = {"pretrain": ("images_seen", "images_per_s", "seconds", "parameters")}
ACCURACY = VAL_TOP1  # of fine-tuning and probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    shown: its folder as people are told of it; settings: the config, key by key; figures: the finite numbers of
    summary.json; rows: metrics.jsonl, finite numbers alone; environment: environment.json, empty where unreadable.
    """

    folder: Path
    shown: str
    cfg: CfgNode
    settings: dict[str, Any]
    figures: dict[str, float]
    rows: tuple[dict[str, float], ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """As TASK."""
        return self.cfg.TASK

    @property
    def seed(self) -> int:
        """As SEED."""
        return self.cfg.SEED

    @property
    def id(self) -> str | None:
        """What the run is known by wherever its folder goes; None where it was made before runs had ids."""
        found = self.environment.get("run")
        return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True)
class Reading:
    """A run folder that was read. run: None where it cannot be compared; remarks: what is wrong with it."""

    run: Run | None
    remarks: tuple[str, ...]


class _Unusable(ValueError):
    """Why a folder cannot be compared."""


def run_folders(root: Path, depth: int | None = None, entries: int | None = None) -> Iterator[Path]:
    """Folders that hold a config.yaml: `root` and those below it, at most `depth` folders deep, and until so many
    entries of folders were seen.
    """
    seen = 0
    for place, folders, files in os.walk(root):
        seen += len(folders) + len(files)
        if entries is not None and seen > entries:
            return
        below = len(Path(place).relative_to(root).parts)
        kept = [] if depth is not None and below >= depth else set(folders) - WITHOUT_RUNS
        folders[:] = sorted(name for name in kept if not name.startswith("."))
        if "config.yaml" in files:
            yield Path(place)


def read(folder: Path) -> Reading:
    """A run folder as far as it can be read."""
    remarks: list[str] = []
    files = RunFolder(folder)
    try:
        cfg = _config(files.config)
        rows = _rows(files.metrics, remarks)
        figures = _figures(files.summary, cfg, rows, remarks)
    except _Unusable as reason:
        return Reading(None, (str(reason),))
    environment = read_environment(folder)
    if environment is None:
        remarks.append("environment.json is missing or damaged: compared without its hardware, commit and origin")
    run = Run(
        folder=folder,
        shown=shown_path(folder),
        cfg=cfg,
        settings=config.flat(cfg),
        figures=figures,
        rows=rows,
        environment=environment or {},
    )
    return Reading(run, tuple(remarks))


def read_environment(folder: Path) -> dict[str, Any] | None:
    """environment.json of a run folder, None where it is missing or damaged."""
    try:
        found = json.loads(RunFolder(folder).environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _config(path: Path) -> CfgNode:
    try:
        text = path.read_text(encoding="utf-8")
        sections = config.read_mapping(text)
        cfg = config.parse_config(text)
    except FileNotFoundError:
        raise _Unusable("config.yaml is missing") from None
    except Exception as error:  # a module of PLUGINS may raise anything
        raise _Unusable(f"config.yaml is damaged or of another version: {first_line(error)}") from error
    lacking = [name for name in ("TASK", "SEED", *schema.sections(cfg.TASK)) if name not in sections]
    if lacking:  # a run folder's config is complete, so defaults in their place would be a guess
        raise _Unusable(f"config.yaml is damaged or of another version: it lacks {', '.join(lacking)}")
    return cfg


def _figures(path: Path, cfg: CfgNode, rows: tuple[dict[str, float], ...], remarks: list[str]) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        epoch = next((row["epoch"] for row in reversed(rows) if "epoch" in row), 0.0)
        raise _Unusable(f"unfinished: epoch {epoch:.4g} of {cfg.TRAIN.epochs}, no summary.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _Unusable(f"summary.json is damaged: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise _Unusable("summary.json is damaged: it is no mapping of figures")
    if found.get("epochs") != cfg.TRAIN.epochs:
        raise _Unusable(f"summary.json is of {found.get('epochs')} epochs, and config.yaml of {cfg.TRAIN.epochs}")
    needed = NEEDED.get(cfg.TASK, (ACCURACY,))
    figures = {}
    for name, value in found.items():
        if _is_number(value):
            figures[name] = float(value)
        elif isinstance(value, float) or name in needed:
            remarks.append(f"summary.json: {name} is {value!r} and no finite number: compared without it")
    missing = [name for name in needed if name not in found]
    if missing:
        remarks.append(f"summary.json lacks {', '.join(missing)}: compared without")
    return figures


def _rows(path: Path, remarks: list[str]) -> tuple[dict[str, float], ...]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        remarks.append("metrics.jsonl is missing: compared without its curves")
        return ()
    rows, damaged, not_finite = [], [], Counter[str]()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not _is_number(row.get("images_seen")):
            damaged.append(number)
            continue
        rows.append({name: float(value) for name, value in row.items() if _is_number(value)})
        not_finite.update(name for name in row if name not in rows[-1])
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        remarks.append(f"metrics.jsonl: line {damaged[0]}{more} cut short or damaged: compared without")
    for name, count in not_finite.items():
        remarks.append(f"metrics.jsonl: {name} is no finite number {count} times: compared without those")
    return tuple(rows)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
