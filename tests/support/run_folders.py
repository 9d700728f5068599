"""Run folders for tests of comparisons: three real runs, and folders made from them with other settings and metrics."""

import atexit
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from processes import FINETUNE, PROBE, TINY, TINY_CLASSIFIER, call

from mim import config
from mim.lab.comparison import compare
from mim.lab.comparison.result import Comparison


@dataclass(frozen=True)
class Real:
    """A pretraining run, and a probe and a fine-tuning that came from it."""

    pretraining: Path
    probe: Path
    finetune: Path


@cache
def real_runs() -> Real:
    """Trained in a few seconds, once a process, and laid out as a study does; not to be changed."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    pretraining = folder / "pretraining" / "mae-seed0"
    code, text = call(pretraining, {**TINY, "LOG.every_steps": 5, "EVALUATE.at_start": True})
    assert code == 0, text
    transfers = []
    for name, recipe in (("linear-probe", PROBE), ("fine-tuning", FINETUNE)):
        transfers.append(folder / name / "mae-seed0")
        code, text = call(transfers[-1], {**TINY_CLASSIFIER, "INIT.checkpoint": pretraining}, recipe)
        assert code == 0, text
    return Real(pretraining, *transfers)


def write_run(
    folder: Path,
    like: Path,
    settings: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
    rows: Sequence[Mapping[str, object]] | None = None,
    start: Path | None = None,
) -> Path:
    """A run folder like another but for some settings, metrics and rows; with an id of its own, and without weights.

    start: the run folder that it came from; without one it came from nowhere.
    """
    folder.mkdir(parents=True)
    pairs = {"INIT.checkpoint": str(start or ""), **(settings or {})}
    words = [str(word) for pair in pairs.items() for word in pair]
    cfg = config.parse_config((like / "config.yaml").read_text(), words)
    (folder / "config.yaml").write_text(cfg.to_yaml())
    summary = {**read_json(like / "summary.json"), "epochs": cfg.TRAIN.epochs, **(metrics or {})}
    (folder / "summary.json").write_text(json.dumps(summary))
    origin = {"checkpoint": str(start), "run": run_id(start)} if start else None
    metadata = {**read_json(like / "environment.json"), "run": uuid.uuid4().hex, "from": origin, **(environment or {})}
    (folder / "environment.json").write_text(json.dumps(metadata))
    lines = (like / "metrics.jsonl").read_text() if rows is None else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def run_id(folder: Path) -> str:
    return read_json(folder / "environment.json")["run"]


def change_environment(folder: Path, **values: object) -> None:
    """Sets keys of environment.json; None removes one."""
    path = folder / "environment.json"
    metadata = {**read_json(path), **values}
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def compared(*folders: Path, **keys) -> Comparison:
    return compare(folders, reconstructions=False, **keys)


def titles(comparison: Comparison) -> set[str]:
    """Of the columns of what came from pretraining runs."""
    return {column.title for column in comparison.columns if column.section == "accuracy"} - {
        "kNN",
        "kNN, random weights",
    }


def values_of(comparison: Comparison, title: str) -> dict[str, tuple[float, ...]]:
    """The values of a column over seeds, by entry."""
    key = next(column.key for column in comparison.columns if column.title == title)
    return {entry.name: entry.values[key] for entry in comparison.entries if key in entry.values}
