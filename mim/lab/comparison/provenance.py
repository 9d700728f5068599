"""Provenance: which probes and fine-tunings came from which pretraining run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim import config
from mim.lab.comparison.formatting import shown_path
from mim.lab.comparison.runs import Run, read, read_environment, run_folders
from mim.lab.comparison.studies import PRETRAINING, Studies

DEPTH = 4  # of folders below the one that holds a given run, where probes and fine-tunings are looked for
ENTRIES = 100_000  # files and folders after which that search ends: a folder of images lies beside some runs


@dataclass(frozen=True, slots=True)
class Start:
    """What a run started from. checkpoint: as INIT.checkpoint, empty for random weights; run: the id of the run that
    wrote it, None where that is not known.
    """

    checkpoint: str
    run: str | None

    @property
    def run_folder(self) -> Path:
        """The run folder that the checkpoint lies in, or the checkpoint where it is in none."""
        path = Path(self.checkpoint)
        return path.parent.parent if path.parent.name == "checkpoints" else path


@dataclass(frozen=True, slots=True)
class Transfer:
    """A probe or a fine-tuning. origin: the pretraining run that it came from, None where that is not compared."""

    run: Run
    origin: Run | None

    @property
    def seeds(self) -> tuple[int, int]:
        """The seed of the pretraining, and its own."""
        return (self.origin or self.run).seed, self.run.seed


@dataclass(slots=True)
class Gathered:
    """The runs that are compared, in the order in which they were given; left_out: folder and reason."""

    pretraining: list[Run] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def gather(given: Sequence[Path], studies: Studies, search: bool = True) -> Gathered:
    """Reads the runs given, each a run folder or a folder that holds some.

    search: also look beside them for probes and fine-tunings that came from them. What came from a run that is left out
    is left out as well. Raises ValueError for a path that does not exist or is no folder.
    """
    gathered = Gathered()
    own = _given_folders(given, studies, gathered)
    runs = list(_read(own, {}, gathered.left_out))
    pretraining = {run.folder: run for run in runs if run.task == "pretrain"}
    gathered.pretraining = list(pretraining.values())
    unread = {folder: _id_in(folder) for folder in own if folder not in {run.folder for run in runs}}
    origins = Origins({**{folder: run.id for folder, run in pretraining.items()}, **unread})
    ids = {run.id: run for run in runs if run.id is not None}
    if search and pretraining:
        beside = [folder for folder in _beside(given, own, studies) if origins.of(folder, _start_in(folder, ids))]
        runs += _read(beside, ids, gathered.left_out)
    for run in runs:
        if run.task == "pretrain":
            continue
        origin = origins.of(run.folder, start_of(run.settings, run.environment))
        if origin is None or origin in pretraining:
            gathered.transfers.append(Transfer(run, pretraining[origin] if origin is not None else None))
        else:
            gathered.left_out.append((run.shown, f"came from {shown_path(origin)}, which is left out"))
    return gathered


def start_of(settings: dict[str, Any], environment: dict[str, Any]) -> Start | None:
    """What a run started from, as its folder records it; None for random weights."""
    checkpoint = str(settings.get("INIT.checkpoint") or "")
    if "from" not in environment:  # of before runs recorded it
        return Start(checkpoint, None) if checkpoint else None
    found = environment["from"]
    if not isinstance(found, dict):
        return None
    run = found.get("run")
    return Start(str(found.get("checkpoint") or checkpoint), run if isinstance(run, str) else None)


class Origins:
    """Finds among run folders the one that another run started from. known: the folders, each with its run's id."""

    def __init__(self, known: Mapping[Path, str | None]):
        self.folders = set(known)
        self.by_id: dict[str, Path] = {}
        for folder, run in known.items():
            if run is not None:
                self.by_id.setdefault(run, folder)

    def of(self, folder: Path, start: Start | None) -> Path | None:
        """The folder of the run that the one in `folder` started from; None where it is not among them."""
        if start is None:
            return None
        if start.run is not None:  # a run that has an id is known by it alone
            return self.by_id.get(start.run)
        return self._by_path(folder, start)

    def _by_path(self, folder: Path, start: Start) -> Path | None:
        """By the path that the config names: from here, else from the folders above, as far as its end is found there.

        So a study that was moved as a whole, from one place or machine to another, still holds together.
        """
        named = start.run_folder
        try:
            if named.exists():
                return self._known(named)
        except OSError:  # a path of another system, that is none here
            return None
        parts = named.parts[1:] if named.is_absolute() else named.parts
        for first in range(len(parts)):
            for above in folder.parents:
                found = self._known(above / Path(*parts[first:]))
                if found is not None:
                    return found
        return None

    def _known(self, path: Path) -> Path | None:
        return path.resolve() if path.resolve() in self.folders else None


def _given_folders(given: Sequence[Path], studies: Studies, gathered: Gathered) -> list[Path]:
    """Run folders among and below the paths given, each once. A folder that holds none is left out by name."""
    found: dict[Path, None] = {}
    for path in given:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a run folder, or a folder that holds some")
        if not path.is_dir():
            raise ValueError(f"{path} is a file: name a run folder, or a folder that holds some")
        folders = sorted((folder.resolve() for folder in run_folders(path)), key=studies.sort_key)
        if not folders:
            gathered.left_out.append((str(path), "no config.yaml in it or in a folder below"))
        found.update(dict.fromkeys(folders))
    return list(found)


def _read(folders: Iterable[Path], ids: Mapping[str, Run], left_out: list[tuple[str, str]]) -> Iterator[Run]:
    """The runs that can be compared. A copy of one that stands earlier, or of one of `ids`, is left out by name, as all
    remarks are.
    """
    known = dict(ids)
    for folder in folders:
        reading = read(folder)
        left_out += [(shown_path(folder), remark) for remark in reading.remarks]
        run = reading.run
        if run is None:
            continue
        if run.id in known:
            left_out.append((run.shown, f"a copy of {known[run.id].shown}"))
            continue
        if run.id is not None:
            known[run.id] = run
        yield run


def _beside(given: Sequence[Path], own: Sequence[Path], studies: Studies) -> list[Path]:
    """Run folders that were not given, near those that were."""
    above = [path.resolve().parent for path in given]
    roots = dict.fromkeys(folder.parent if folder.name == PRETRAINING else folder for folder in above)
    found = dict.fromkeys(folder.resolve() for root in roots for folder in run_folders(root, DEPTH, ENTRIES))
    return sorted((folder for folder in found if folder not in set(own)), key=studies.sort_key)


def _id_in(folder: Path) -> str | None:
    found = (read_environment(folder) or {}).get("run")
    return found if isinstance(found, str) else None


def _start_in(folder: Path, ids: Mapping[str, Run]) -> Start | None:
    """What the run in a folder started from, read without the cost of a whole config; None for random weights, for a
    copy of one of `ids`, and where the folder does not tell.
    """
    environment = read_environment(folder) or {}
    if environment.get("run") in ids:
        return None
    if "from" in environment:
        return start_of({}, environment)
    try:
        sections = config.read_mapping((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    init = sections.get("INIT")
    return start_of({"INIT.checkpoint": init.get("checkpoint")} if isinstance(init, dict) else {}, environment)
