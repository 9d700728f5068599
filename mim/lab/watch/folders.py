"""The run folders that a page follows: found anew at each look, and read again only where a file has changed."""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from mim.engine.run_folder import CONFUSION, RECONSTRUCTIONS, SEGMENTATIONS, RunFolder
from mim.lab.comparison.formatting import display_path, natural_key
from mim.lab.comparison.runs.run import read_rows, run_folders
from mim.lab.watch.charts import charts_of
from mim.lab.watch.status import Rows, read_status

STATES = ("running", "interrupted", "unreadable", "finished")  # as they stand on the page
PICTURES = (RECONSTRUCTIONS, SEGMENTATIONS, CONFUSION)  # the first of them that a run has is shown
STEP = re.compile(r"step-[0-9]+\.png")
Signature = tuple[int, int]  # of a file: when it was written, and its size


class RunFolders:
    """Runs at and below some paths.

    Raises ValueError where a path is not a folder.
    """

    def __init__(self, paths: Sequence[Path]):
        for path in paths:
            if not path.is_dir():
                problem = "is a file" if path.exists() else "does not exist"
                raise ValueError(f"{path} {problem}: name a run folder, or a folder that holds some")
        self.paths = tuple(paths)
        self._rows: dict[Path, tuple[Signature, Rows]] = {}
        self._lock = Lock()

    def overview(self) -> dict[str, Any]:
        """Every run with its status, those that run first; `version` changes when its curves do."""
        with self._lock:
            runs = [self._describe(run, folder) for run, folder in self._folders().items()]
        runs.sort(key=lambda run: (STATES.index(run["state"]), natural_key(run["name"])))
        return {"runs": runs, "paths": [display_path(path) for path in self.paths]}

    def charts(self, run: str) -> list[dict[str, Any]] | None:
        """The charts of a run, by its id; None where there is no such run."""
        folder = self._folders().get(run)
        if folder is None:
            return None
        with self._lock:
            return [asdict(chart) for chart in charts_of(self._read_rows(folder)[1])]

    def picture(self, run: str, kind: str, name: str) -> bytes | None:
        """The content of a picture that an evaluation wrote into a run folder; None where there is no such picture."""
        folder = self._folders().get(run)
        if folder is None or kind not in PICTURES:
            return None
        path = _pictures(folder / kind).get(name)
        try:
            return None if path is None else path.read_bytes()
        except OSError:  # deleted meanwhile
            return None

    def _folders(self) -> dict[str, Path]:
        """Run folders by an id that they keep as long as they are not moved."""
        folders = dict.fromkeys(folder.resolve() for path in self.paths for folder in run_folders(path))
        return {hashlib.sha256(bytes(folder)).hexdigest()[:16]: folder for folder in folders}

    def _describe(self, run: str, folder: Path) -> dict[str, Any]:
        signature, rows = self._read_rows(folder)
        return {
            "id": run,
            "name": display_path(folder),
            "version": "-".join(map(str, signature)),
            "picture": _newest_picture(folder),
            **asdict(read_status(folder, rows, time.time())),
        }

    def _read_rows(self, folder: Path) -> tuple[Signature, Rows]:
        """The rows of metrics.jsonl; a last line that is being written is left out."""
        path = RunFolder(folder).metrics
        try:
            state = path.stat()
        except OSError:
            return (0, 0), ()
        signature = (state.st_mtime_ns, state.st_size)
        known = self._rows.get(path)
        if known is None or known[0] != signature:
            known = self._rows[path] = (signature, read_rows(path, []))
        return known


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures in a folder of a run, by name; links are none."""
    if folder.is_symlink():
        return {}
    try:
        paths = [path for path in folder.iterdir() if STEP.fullmatch(path.name)]
        return {path.name: path for path in paths if path.is_file() and not path.is_symlink()}
    except OSError:  # there is no such folder
        return {}


def _newest_picture(folder: Path) -> dict[str, Any] | None:
    """Kind, name and step of the newest picture of the first kind that a run has, and when it was written."""
    for kind in PICTURES:
        steps = {int(name[len("step-") : -len(".png")]): path for name, path in _pictures(folder / kind).items()}
        if steps:
            step = max(steps)
            try:
                written = steps[step].stat().st_mtime_ns
            except OSError:  # deleted meanwhile
                continue
            return {"kind": kind, "name": steps[step].name, "step": step, "version": str(written)}
    return None
