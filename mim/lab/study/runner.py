"""Running a study: what is not trained yet is trained, chain by chain, and what came out is written down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mim.config import Config, parse_config, read_pairs
from mim.engine import checkpoint
from mim.engine.log import log_to_console
from mim.lab.layout import slug
from mim.lab.study.file import Pairs, Study, Trial
from mim.lab.study.processes import Ended, Job, run_chains
from mim.lab.study.results import Results
from mim.metric_keys import KNN_TOP1, VAL_TOP1

Say = Callable[[str], None]
PRETRAINING = ""  # in place of a protocol's name


@dataclass(frozen=True, slots=True)
class TrialRun:
    """One run of a study."""

    trial: Trial
    protocol: str
    seed: int
    cfg: Config
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.protocol or 'pretraining'}, {self.trial.name}, seed {self.seed}"


def run_study(study: Study, output: Path, overrides: Sequence[str], jobs: int, say: Say) -> Results:
    """Trains what is not trained yet, in `output`; a study that was interrupted goes on where it was.

    KEY VALUE pairs go to every run whose task has that section. Every config is loaded before the first run starts; a
    point of a GRID that cannot be (cells that do not divide the image, say) is named and left out. `say` is told of
    each run's end, and of each that failed: the others go on. Raises ValueError for what the user can mend.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: at least 1")
    log_to_console(False)  # the log of each run is in its folder
    planned, impossible = _planned(study, output, read_pairs(overrides))
    for name, reason in impossible:
        say(f"left out: {name}: {reason}")
    results = Results(study, configs={run.trial.name: run.cfg for run in reversed(planned)})
    runs = {run.name: run for run in planned}
    chains: dict[tuple[str, int], list[Job]] = {}
    for run in planned:
        pretraining = planned_folder(output, PRETRAINING, run.trial.name, run.seed)
        follows = bool(run.protocol) and run.trial.recipe.file is not None
        job = Job(run.name, run.folder, partial(_text, run, pretraining if follows else None))
        chains.setdefault((run.trial.name, run.seed), []).append(job)

    def ended(end: Ended) -> None:
        run = runs[end.job.name]
        reason = end.reason
        if end.summary is not None and run.protocol and VAL_TOP1 not in end.summary:
            reason = "no images are held out, so there is no accuracy to compare"
        if end.summary is None or reason:
            results.failed[run.name] = reason
            say(f"[{results.ended}/{len(planned)}] FAILED {run.name}: {reason}")
            return
        results.add(run.trial.name, run.protocol, run.seed, end.summary)
        say(f"[{results.ended}/{len(planned)}] {run.name}: {_in_words(end.summary)}")

    run_chains(list(chains.values()), jobs, ended)
    return results


def planned_folder(output: Path, protocol: str, trial: str, seed: int) -> Path:
    """The folder of a run."""
    return output / (slug(protocol) if protocol else "pretraining") / f"{slug(trial)}-seed{seed}"


def _text(run: TrialRun, source: Path | None) -> str:
    """The run's config; what follows a pretraining starts from its last checkpoint."""
    cfg = run.cfg
    if source is not None:
        init = ["INIT.checkpoint", str(checkpoint.last(source / "checkpoints"))]
        cfg = parse_config(cfg.to_yaml(), init)
    return cfg.to_yaml()


def _planned(study: Study, output: Path, anywhere: Pairs) -> tuple[list[TrialRun], list[tuple[str, str]]]:
    """Every run, pretraining before its protocols, and the points of a grid that cannot be."""
    runs: list[TrialRun] = []
    impossible: list[tuple[str, str]] = []
    for trial in study.trials:
        try:
            found = [run for seed in study.seeds for run in _chain(study, trial, seed, output, anywhere)]
        except ValueError as error:
            if not study.grid or not trial.point:
                raise
            impossible.append((trial.name, str(error)))
            continue
        runs += found
    if not runs:
        raise ValueError(f"no point of the GRID can be: {impossible[0][0]}: {impossible[0][1]}")
    folders: dict[Path, str] = {}
    for run in runs:
        if folders.setdefault(run.folder, run.name) != run.name:
            raise ValueError(f"{run.name}: another run has the folder {run.folder}; rename it")
    unused = [key for key in anywhere if not any(key.partition(".")[0] in run.cfg.values() for run in runs)]
    if unused:
        raise ValueError(f"{unused[0]} is a key of no run of this study")
    return runs, impossible


def _chain(study: Study, trial: Trial, seed: int, output: Path, anywhere: Pairs) -> list[TrialRun]:
    """The runs of a trial under one seed."""
    found = []
    for protocol, recipe in ((PRETRAINING, trial.recipe), *study.protocols.items()):
        if recipe.file is None:
            continue
        cfg = recipe.load(seed, trial.recipe.then if protocol else trial.point, anywhere)
        found.append(TrialRun(trial, protocol, seed, cfg, planned_folder(output, protocol, trial.name, seed)))
    return found


def _in_words(summary: dict) -> str:
    figures = {"kNN": KNN_TOP1, "top-1": VAL_TOP1}
    shown = [f"{word} {summary[key]:.4f}" for word, key in figures.items() if key in summary]
    return ", ".join([f"{summary['epochs']} epochs in {summary['seconds']:,.0f} s", *shown])
