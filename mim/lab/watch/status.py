"""Status of a run: what it is doing, how far it has come and how fast it is, from the files of its folder alone."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mim.config import read_mapping
from mim.engine.run_folder import RunFolder
from mim.lab.comparison.formatting import first_line
from mim.metric_keys import DATA_SHARE, IMAGES_PER_S

State = Literal["running", "interrupted", "finished", "unreadable"]
Rows = Sequence[dict[str, float]]
TAIL_BYTES = 65_536  # of log.txt that are read
QUIET_S = 600.0  # without a sign of life after which a run counts as interrupted
QUIET_ROWS = 10  # or so many times the usual time between two rows, where that is longer
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)")  # the start of an entry of log.txt
STOPPED = re.compile(r"stopped: (\w+): (.*)")  # how mim.engine.log writes the error that ended a run
ON_REQUEST = ("RunInterrupted", "KeyboardInterrupt")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run at one moment. None: not known, or not of a run in this state."""

    state: State
    note: str = ""  # why it does not run on
    task: str = ""
    epoch: float = 0.0
    epochs: int = 0  # of the whole run
    images_seen: float = 0.0
    seconds: float | None = None  # of all its processes so far
    eta_s: float | None = None  # seconds until its end
    images_per_s: float | None = None
    data_share: float | None = None  # share of the time in which training waited for images, since the row before
    quiet_s: float | None = None  # since a file was last written


def read_status(folder: Path, rows: Rows, now: float) -> RunStatus:
    """What a run folder says.

    Args:
        folder: holds config.yaml.
        rows: of its metrics.jsonl.
        now: seconds since 1970.
    """
    files = RunFolder(folder)
    written = last_write(files)
    quiet_s = None if written is None else max(0.0, now - written)
    try:
        task, epochs = _plan(files.config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunStatus("unreadable", f"config.yaml cannot be read: {first_line(error)}", quiet_s=quiet_s)
    last = rows[-1] if rows else {}
    summary = _summary(files.summary)
    finished = summary.get("epochs") == epochs and last.get("step", 0.0) >= summary.get("steps", 0)
    state: State = "finished" if finished else "running"
    note = "" if finished else _reason(files.log, rows, quiet_s)
    if note:
        state = "interrupted"
    speeds = [row for row in rows if IMAGES_PER_S in row]
    return RunStatus(
        state=state,
        note=note,
        task=task,
        epoch=float(epochs) if finished else last.get("epoch", 0.0),
        epochs=epochs,
        images_seen=last.get("images_seen", 0.0),
        seconds=last.get("seconds"),
        eta_s=_eta(rows, epochs, quiet_s or 0.0) if state == "running" else None,
        images_per_s=speeds[-1][IMAGES_PER_S] if speeds else None,
        data_share=speeds[-1].get(DATA_SHARE) if speeds else None,
        quiet_s=quiet_s,
    )


def last_write(files: RunFolder) -> float | None:
    """When a file of a run was last written, in seconds since 1970; None where there is none."""
    paths = (files.log, files.metrics, files.config, files.summary, files.checkpoints)
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # it is not there yet
            continue
    return max(times, default=None)


def _plan(config: Path) -> tuple[str, int]:
    """TASK and TRAIN.epochs of a config, without its plugins, which would run code."""
    sections = read_mapping(config.read_text(encoding="utf-8"))
    return str(sections["TASK"]), int(sections["TRAIN"]["epochs"])


def _summary(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _reason(log: Path, rows: Rows, quiet_s: float | None) -> str:
    """Why a run without a summary does not run; empty where it does."""
    stopped = STOPPED.match(_last_entry(log))
    if stopped:
        error, text = stopped.groups()
        return (text or "ended by Ctrl-C") if error in ON_REQUEST else f"{error}: {text}"
    if quiet_s is not None and quiet_s > _patience(rows):
        return "nothing was written for a long time: it was killed, or it hangs"
    return ""


def _last_entry(log: Path) -> str:
    """The first line of the last entry of a log, without its time; empty where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((entry[1] for line in reversed(lines) if (entry := STAMP.fullmatch(line))), "")


def _patience(rows: Rows) -> float:
    times = [row["seconds"] for row in rows if "seconds" in row]
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return max(QUIET_S, QUIET_ROWS * median(steps)) if steps else QUIET_S


def _eta(rows: Rows, epochs: int, quiet_s: float) -> float | None:
    """Seconds until the end at the pace of the later half of the rows, evaluations and checkpoints included."""
    timed = [row for row in rows if "seconds" in row and "epoch" in row]
    if not timed:
        return None
    last, before = timed[-1], timed[len(timed) // 2]
    start = before if before["epoch"] < last["epoch"] else {"epoch": 0.0, "seconds": 0.0}
    if last["epoch"] <= start["epoch"]:
        return None
    pace = (last["seconds"] - start["seconds"]) / (last["epoch"] - start["epoch"])
    return max(0.0, (epochs - last["epoch"]) * pace - quiet_s)
