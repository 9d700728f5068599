"""Run folders: which there are, and what each holds. What is wrong with one becomes a remark and ends nothing."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim.config import Config, parse_config, read_mapping, schema
from mim.engine.run_folder import CONFIG, SUBFOLDERS, RunFolder
from mim.lab.comparison.formatting import display_path, first_line
from mim.lab.label_metrics import METRICS, kind_of
from mim.metric_keys import VAL_BY_CLASS, VAL_BY_COLUMN
from mim.structures import LabelKind

WITHOUT_RUNS = SUBFOLDERS | {"__pycache__"}
REQUIRED = {"pretrain": ("images_seen", "images_per_s", "seconds", "parameters")}
YOUNGER = ("AUGMENTATION",)  # sections that runs of before lack: their defaults are what those runs did
DAMAGED = "config.yaml is damaged or of another version"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    folder: Path
    cfg: Config
    settings: dict[str, Any]
    summary: dict[str, float]  # the finite numbers of summary.json
    rows: tuple[dict[str, float], ...] = ()  # metrics.jsonl, finite numbers only
    environment: dict[str, Any] = field(default_factory=dict)  # environment.json; empty where it cannot be read
    names: tuple[str, ...] = ()  # of the classes that its held-out labels show, or of the columns of numbers

    @property
    def path(self) -> str:  # of the folder, for messages
        return display_path(self.folder)

    @property
    def task(self) -> str:
        return self.cfg.TASK

    @property
    def seed(self) -> int:
        return self.cfg.SEED

    @property
    def id(self) -> str | None:
        """The id, which stays when the folder is moved; None where the run is older than ids."""
        return id_in(self.environment)

    @property
    def extension(self) -> tuple[int, int] | None:
        """The step at which the run was last extended, and the epochs to which; None where it was not."""
        try:
            last = self.environment["extensions"][-1]
            return int(last["step"]), int(last["to_epochs"])
        except (KeyError, IndexError, TypeError, ValueError):
            return None


class _UnusableRun(ValueError):
    """Why a folder cannot be compared."""


def run_folders(root: Path, depth: int | None = None, entries: int | None = None) -> Iterator[Path]:
    """Folders that hold a config.yaml: `root`, and those up to `depth` below it, until `entries` files were seen."""
    count = 0
    for path, folders, files in os.walk(root):
        count += len(folders) + len(files)
        if entries is not None and count > entries:
            return
        below = len(Path(path).relative_to(root).parts)
        inner = [] if depth is not None and below >= depth else set(folders) - WITHOUT_RUNS
        folders[:] = sorted(name for name in inner if not name.startswith("."))
        if CONFIG in files:
            yield Path(path)


def read_run(folder: Path) -> tuple[Run | None, list[str]]:
    """Reads a run folder. Returns the run, None where it cannot be compared, and remarks on what is wrong with it."""
    remarks: list[str] = []
    files = RunFolder(folder)
    try:
        cfg = _config(files.config)
        rows = read_rows(files.metrics, remarks)
        content = _summary(files.summary, cfg, rows, remarks)
    except _UnusableRun as reason:
        return None, [str(reason)]
    environment = read_environment(folder)
    if environment is None:
        remarks.append("environment.json is missing or damaged: compared without its hardware, commit and origin")
    return Run(folder, cfg, cfg.flat(), _numbers(content), rows, environment or {}, _names(content)), remarks


def read_environment(folder: Path) -> dict[str, Any] | None:
    """environment.json of a run folder; None where it is missing or damaged."""
    try:
        content = json.loads(RunFolder(folder).environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def id_in(environment: dict[str, Any] | None) -> str | None:
    """The id of a run in its environment.json."""
    content = (environment or {}).get("run")
    return content if isinstance(content, str) else None


def _config(path: Path) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
        sections = read_mapping(text)
        cfg = parse_config(text)
    except FileNotFoundError:
        raise _UnusableRun("config.yaml is missing") from None
    except Exception as error:  # a module of PLUGINS may raise anything
        raise _UnusableRun(f"{DAMAGED}: {first_line(error)}") from error
    required = ("TASK", "SEED", *(name for name in schema.sections(cfg.TASK) if name not in YOUNGER))
    missing = [name for name in required if name not in sections]
    if missing:  # the config of a run folder is complete, so defaults would be a guess
        raise _UnusableRun(f"{DAMAGED}: it lacks {', '.join(missing)}")
    return cfg


def _summary(path: Path, cfg: Config, rows: tuple[dict[str, float], ...], remarks: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        epoch = next((row["epoch"] for row in reversed(rows) if "epoch" in row), 0.0)
        raise _UnusableRun(f"unfinished: epoch {epoch:.4g} of {cfg.TRAIN.epochs}, no summary.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _UnusableRun(f"summary.json is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise _UnusableRun("summary.json is damaged: it is not a mapping")
    if content.get("epochs") != cfg.TRAIN.epochs:
        raise _UnusableRun(f"summary.json is of {content.get('epochs')} epochs, config.yaml of {cfg.TRAIN.epochs}")
    required = REQUIRED.get(cfg.TASK) or (METRICS[kind_of(content) or _kind_in(cfg)][0].key,)
    for name, value in content.items():
        is_metric = name in required or isinstance(value, float) or (value is None and "/" in name)
        if is_metric and not _is_number(value):
            remarks.append(f"summary.json: {name} is {value!r}, which is no finite number: compared without it")
    missing = [name for name in required if name not in content]
    if missing:
        remarks.append(f"summary.json lacks {', '.join(missing)}: compared without")
    return content


def _kind_in(cfg: Config) -> LabelKind:
    """What the labels are as far as the config alone tells."""
    kind = cfg.LABELS.kind
    return "class" if kind == "auto" else kind


def _names(content: dict[str, Any]) -> tuple[str, ...]:
    by_name = content.get(VAL_BY_CLASS, content.get(VAL_BY_COLUMN))
    return tuple(by_name) if isinstance(by_name, dict) else ()


def read_rows(path: Path, remarks: list[str]) -> tuple[dict[str, float], ...]:
    """The rows of metrics.jsonl, finite numbers only; what is wrong with the file is added to the remarks."""
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
        rows.append(_numbers(row))
        not_finite.update(name for name in row if name not in rows[-1])
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        remarks.append(f"metrics.jsonl: line {damaged[0]}{more} cut short or damaged: compared without")
    for name, count in not_finite.items():
        remarks.append(
            f"metrics.jsonl: {name} is no finite number in {count} line{'s' * (count > 1)}: compared without"
        )
    return tuple(rows)


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in content.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
