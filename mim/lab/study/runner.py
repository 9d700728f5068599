"""Running a study: trains what is not trained yet, chain by chain, and collects the summaries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mim.config import Config, parse_config, read_pairs
from mim.engine import checkpoint
from mim.engine.log import log_to_console
from mim.engine.run_folder import RunFolder
from mim.lab.label_metrics import MAIN, kind_of
from mim.lab.layout import study_run
from mim.lab.study.file import Pairs, Study, Trial
from mim.lab.study.processes import Job, JobResult, run_chains
from mim.lab.study.results import Results
from mim.metric_keys import KNN_TOP1


@dataclass(frozen=True, slots=True)
class TrialRun:
    """One run of a study."""

    trial: Trial
    protocol: str  # empty for pretraining
    seed: int
    cfg: Config
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.protocol or 'pretraining'}, {self.trial.name}, seed {self.seed}"


def run_study(study: Study, output: Path, overrides: Sequence[str], jobs: int, say: Callable[[str], None]) -> Results:
    """Trains what is not trained yet; a study that was interrupted continues where it was.

    Every config is loaded before the first run starts. A point of a GRID that cannot be trained, such as cells that do
    not divide the image, is named and left out. Where a run fails, the others go on.

    Args:
        overrides: `KEY VALUE` pairs for every run whose task has that section.
        say: gets a line for each run that ends or fails.

    Raises ValueError where a config cannot be loaded, and for an override that no run has.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}: at least 1")
    log_to_console(False)  # the log of each run is in its folder
    runs, left_out = _trial_runs(study, output, read_pairs(overrides))
    for name, reason in left_out:
        say(f"left out: {name}: {reason}")
    results = Results(study, configs={run.trial.name: run.cfg for run in reversed(runs)})
    by_name = {run.name: run for run in runs}
    chains: dict[tuple[str, int], list[Job]] = {}
    for run in runs:
        pretrained = bool(run.protocol) and run.trial.recipe.file is not None
        source = study_run(output, "", run.trial.name, run.seed) if pretrained else None
        job = Job(run.name, run.folder, partial(_config_text, run, source))
        chains.setdefault((run.trial.name, run.seed), []).append(job)

    def add(result: JobResult) -> None:
        run, summary, reason = by_name[result.job.name], result.summary, result.reason
        if summary is not None and run.protocol and kind_of(summary) is None:
            reason = "no images are held out, so there is no metric to compare"
        if summary is not None and summary["epochs"] != run.cfg.TRAIN.epochs:
            reason = f"it was extended to {summary['epochs']} epochs, and the study has {run.cfg.TRAIN.epochs}"
        if summary is None or reason:
            results.failed[run.name] = reason
            text = f"FAILED {run.name}: {reason}"
        else:
            results.summaries[run.trial.name, run.protocol, run.seed] = summary
            text = f"{run.name}: {_summary_text(summary)}"
        say(f"[{len(results.summaries) + len(results.failed)}/{len(runs)}] {text}")

    run_chains(list(chains.values()), jobs, add)
    return results


def _config_text(run: TrialRun, source: Path | None) -> str:
    """The run's config; a protocol starts from the last checkpoint of the pretraining in `source`."""
    text = run.cfg.to_yaml()
    if source is None:
        return text
    return parse_config(text, ["INIT.checkpoint", str(checkpoint.last(RunFolder(source).checkpoints))]).to_yaml()


def _trial_runs(study: Study, output: Path, overrides: Pairs) -> tuple[list[TrialRun], list[tuple[str, str]]]:
    """Every run, pretraining before its protocols, and the points of a grid that are left out."""
    runs: list[TrialRun] = []
    left_out: list[tuple[str, str]] = []
    for trial in study.trials:
        try:
            chains = [_chain(study, trial, seed, output, overrides) for seed in study.seeds]
        except ValueError as error:
            if not study.grid or not trial.point:
                raise
            left_out.append((trial.name, str(error)))
            continue
        runs += [run for chain in chains for run in chain]
    if not runs:
        raise ValueError(f"no point of the GRID can be trained: {left_out[0][0]}: {left_out[0][1]}")
    folders: dict[Path, str] = {}
    for run in runs:
        if folders.setdefault(run.folder, run.name) != run.name:
            raise ValueError(f"{run.name}: another run has the folder {run.folder}; rename it")
    unused = [key for key in overrides if not any(key.partition(".")[0] in run.cfg.values() for run in runs)]
    if unused:
        raise ValueError(f"{unused[0]} is a key of no run of this study")
    return runs, left_out


def _chain(study: Study, trial: Trial, seed: int, output: Path, overrides: Pairs) -> list[TrialRun]:
    chain = []
    start = None  # the config of the pretraining
    for protocol, recipe in (("", trial.recipe), *study.protocols.items()):
        if recipe.file is not None:
            cfg = recipe.load(seed, trial.recipe.then if protocol else trial.point, overrides, start)
            start = start if protocol else cfg
            chain.append(TrialRun(trial, protocol, seed, cfg, study_run(output, protocol, trial.name, seed)))
    return chain


def _summary_text(summary: dict) -> str:
    names = {"kNN": KNN_TOP1, **{main.title: main.key for main in MAIN}}
    accuracies = [f"{name} {summary[key]:.4f}" for name, key in names.items() if key in summary]
    return ", ".join([f"{summary['epochs']} epochs in {summary['seconds']:,.0f} s", *accuracies])
