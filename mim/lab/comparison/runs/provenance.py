"""Provenance: which probes and fine-tunings came from which pretraining run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim.config import read_mapping
from mim.engine.run_folder import RunFolder
from mim.lab.comparison.formatting import display_path
from mim.lab.comparison.runs.run import Run, id_in, read_environment, read_run, run_folders
from mim.lab.comparison.runs.studies import Studies
from mim.lab.layout import PRETRAINING, seedless

DEPTH = 4  # folders below the one that holds a run, in which probes and fine-tunings are looked for
ENTRIES = 100_000  # files and folders after which that search ends: a folder of images lies beside some runs


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """What a run started from."""

    checkpoint: str
    run: str | None = None  # the id of the run that wrote it, where it is known
    step: int | None = None  # the optimizer steps of that run until then, where they are known

    @property
    def run_folder(self) -> Path:
        """The run folder that the checkpoint lies in, or the checkpoint where it lies in none."""
        folder = RunFolder.of_checkpoint(Path(self.checkpoint))
        return Path(self.checkpoint) if folder is None else folder.path

    @property
    def name(self) -> str:
        return seedless(self.run_folder.name)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A probe or a fine-tuning."""

    run: Run
    origin: Run | None  # the pretraining run that it came from, None where that is not compared

    @property
    def seeds(self) -> tuple[int, int]:
        """The seed of the pretraining, and the seed of the transfer."""
        return (self.origin or self.run).seed, self.run.seed


@dataclass(slots=True)
class RunCollection:
    """The runs that are compared, in the order of the paths, and what is left out: folder and reason."""

    pretraining: list[Run] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def collect_runs(paths: Sequence[Path], studies: Studies, search: bool = True) -> RunCollection:
    """Reads the run folders at and below the paths; with `search`, also probes and fine-tunings of them nearby.

    What came from a run that is left out is left out too. Raises ValueError for a path that is no folder.
    """
    collection = RunCollection()
    folders = _folders_at(paths, studies, collection)
    runs = list(_read(folders, {}, collection.left_out))
    pretraining = {run.folder: run for run in runs if run.task == "pretrain"}
    collection.pretraining = list(pretraining.values())
    unread = {folder: id_in(read_environment(folder)) for folder in folders if folder not in {r.folder for r in runs}}
    origins = Origins({**{folder: run.id for folder, run in pretraining.items()}, **unread})
    ids = {run.id: run for run in runs if run.id is not None}
    if search and pretraining:
        beside = [folder for folder in _beside(paths, folders, studies) if origins.of(folder, _start_in(folder, ids))]
        runs += _read(beside, ids, collection.left_out)
    for run in runs:
        if run.task == "pretrain":
            continue
        start = start_of(run.settings, run.environment)
        origin = origins.of(run.folder, start)
        if origin in pretraining and (reason := _outdated(start, pretraining[origin])):
            collection.left_out.append((run.path, reason))
        elif origin is None or origin in pretraining:
            collection.transfers.append(Transfer(run, pretraining[origin] if origin is not None else None))
        else:
            collection.left_out.append((run.path, f"came from {display_path(origin)}, which is left out"))
    return collection


def start_of(settings: Mapping[str, Any], environment: dict[str, Any]) -> InitialWeights | None:
    """What a run started from, as its folder records it; None for random weights."""
    checkpoint = str(settings.get("INIT.checkpoint") or "")
    if "from" not in environment:  # older than that record
        return InitialWeights(checkpoint) if checkpoint else None
    origin = environment["from"]
    if not isinstance(origin, dict):
        return None
    step = origin.get("step")
    return InitialWeights(
        str(origin.get("checkpoint") or checkpoint), id_in(origin), step if isinstance(step, int) else None
    )


def _outdated(start: InitialWeights | None, origin: Run) -> str:
    """Why what came from a run does not belong to it as it is now; empty where it does."""
    if start is None or start.step is None or origin.extension is None or start.step > origin.extension[0]:
        return ""
    return f"came from step {start.step:,} of {origin.path}, before it was extended to {origin.extension[1]} epochs"


class Origins:
    """Looks up the run folder that another run started from. ids: the id of the run in each folder."""

    def __init__(self, ids: Mapping[Path, str | None]):
        self.folders = set(ids)
        self.by_id = {run: folder for folder, run in reversed(list(ids.items())) if run is not None}

    def of(self, folder: Path, start: InitialWeights | None) -> Path | None:
        """The folder of the run that the one in `folder` started from; None where it is not among the folders."""
        if start is None:
            return None
        if start.run is not None:  # a run that has an id is identified by it alone
            return self.by_id.get(start.run)
        try:
            if start.run_folder.exists():
                return self._among_folders(start.run_folder)
        except OSError:  # a path of another system, which is not valid here
            return None
        # as many last parts of the path as lead from a folder above to a run, so that a study can be moved
        path = start.run_folder
        parts = path.parts[1:] if path.is_absolute() else path.parts
        ends = (above / Path(*parts[first:]) for first in range(len(parts)) for above in folder.parents)
        return next((origin for end in ends if (origin := self._among_folders(end)) is not None), None)

    def _among_folders(self, path: Path) -> Path | None:
        return path.resolve() if path.resolve() in self.folders else None


def _folders_at(paths: Sequence[Path], studies: Studies, collection: RunCollection) -> list[Path]:
    """Run folders at and below the paths, each once."""
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            problem = "is a file" if path.exists() else "does not exist"
            raise ValueError(f"{path} {problem}: name a run folder, or a folder that holds some")
        below = sorted((folder.resolve() for folder in run_folders(path)), key=studies.sort_key)
        if not below:
            collection.left_out.append((str(path), "no config.yaml in it or in a folder below"))
        folders.update(dict.fromkeys(below))
    return list(folders)


def _read(folders: Iterable[Path], ids: Mapping[str, Run], left_out: list[tuple[str, str]]) -> Iterator[Run]:
    """The runs that can be compared. Copies of earlier ones, or of one of `ids`, are left out, as all remarks are."""
    earlier = dict(ids)
    for folder in folders:
        run, remarks = read_run(folder)
        left_out += [(display_path(folder), remark) for remark in remarks]
        if run is None:
            continue
        if run.id in earlier:
            left_out.append((run.path, f"a copy of {earlier[run.id].path}"))
            continue
        if run.id is not None:
            earlier[run.id] = run
        yield run


def _beside(paths: Sequence[Path], folders: Sequence[Path], studies: Studies) -> list[Path]:
    above = [path.resolve().parent for path in paths]
    roots = dict.fromkeys(folder.parent if folder.name == PRETRAINING else folder for folder in above)
    near = dict.fromkeys(folder.resolve() for root in roots for folder in run_folders(root, DEPTH, ENTRIES))
    return sorted((folder for folder in near if folder not in set(folders)), key=studies.sort_key)


def _start_in(folder: Path, ids: Mapping[str, Run]) -> InitialWeights | None:
    """What the run in a folder started from; None also for a copy of one of `ids`. Reads less than the whole config."""
    environment = read_environment(folder) or {}
    if environment.get("run") in ids:
        return None
    if "from" in environment:
        return start_of({}, environment)
    try:
        sections = read_mapping(RunFolder(folder).config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    init = sections.get("INIT")
    return start_of({"INIT.checkpoint": init.get("checkpoint")} if isinstance(init, dict) else {}, environment)
