"""Assembly: from run folders to a Comparison, and from that to the files that show it."""

from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from statistics import fmean

from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder
from mim.io.files import write_text
from mim.lab.comparison.analysis.curves import METRICS, budgets_of, curves_of
from mim.lab.comparison.analysis.evidence import evidence_of
from mim.lab.comparison.analysis.fairness import settings_of, unlike_losses, unlike_machines, warnings_of
from mim.lab.comparison.analysis.metrics import (
    AT_START,
    ColumnValues,
    by_seed,
    estimate_of,
    pretraining_metrics,
    transfer_metrics,
)
from mim.lab.comparison.analysis.separation import ALL_PAIRS, best_of, paired_tests
from mim.lab.comparison.formatting import display_path, first_line, join_names
from mim.lab.comparison.result import Comparison, Entry, RunMetrics, Sheet
from mim.lab.comparison.runs.baselines import add_baselines
from mim.lab.comparison.runs.groups import Group, group_runs
from mim.lab.comparison.runs.protocols import protocols_of
from mim.lab.comparison.runs.provenance import RunCollection, collect_runs
from mim.lab.comparison.runs.studies import Studies
from mim.lab.comparison.views.csv_files import write_csv
from mim.lab.comparison.views.figures.all import figures_of
from mim.lab.comparison.views.figures.files import write_figures
from mim.lab.comparison.views.page import render
from mim.lab.comparison.views.papers import write_tables
from mim.lab.comparison.views.reconstructions import held_out_sheets
from mim.lab.layout import FIGURES, PAGE, TABLES
from mim.metric_keys import TRAIN_LOSS, VAL_LOSS

SHEETS = 6  # entries with reconstructions side by side
REASONS = 5  # folders left out that an error names
SECTIONS = ("accuracy", "loss", "cost", "more")


def compare(
    runs: Sequence[str | Path], *, title: str = "", reconstructions: bool = True, search: bool = True, command: str = ""
) -> Comparison:
    """Compares pretraining runs, and the probes and fine-tunings that came from them.

    A folder that cannot be compared is named in `left_out`, with the reason.

    Args:
        runs: run folders, or folders that hold run folders at any depth, such as the output of a study.
        title: of the page; by default the names of the entries.
        reconstructions: also draw held-out images as each entry predicts them, which builds every model.
        search: also look for probes and fine-tunings beside the runs; their folders record where they came from.
        command: makes this comparison again; the page shows it.

    Raises ValueError where a path does not exist, and where no run is left.
    """
    studies = Studies()
    collection = collect_runs([Path(run) for run in runs], studies, search)
    if search:
        add_baselines(collection, studies)
    groups = group_runs(collection, studies)
    if not groups:
        raise ValueError(_nothing_left(runs, collection))
    protocols = protocols_of(groups, studies, collection.left_out)
    losses = unlike_losses(groups)
    columns = [*pretraining_metrics(groups, losses, unlike_machines(groups)), *transfer_metrics(protocols)]
    columns.sort(key=lambda each: (SECTIONS.index(each.column.section), each.column.key == AT_START))
    names = [group.name for group in groups]
    tests = paired_tests(columns, names)
    budgets, notes = budgets_of(groups)
    if tests and len(groups) > ALL_PAIRS:
        notes.append(f"Paired tests are of each entry against {names[0]}, as there are more than {ALL_PAIRS} entries.")
    sheets: tuple[Sheet, ...] = ()
    if reconstructions:
        sheets, more = _sheets(groups)
        notes += more
    metric_names = {metric: name for metric, (_, name) in METRICS.items()}
    if losses:
        metric_names |= {metric: f"{metric_names[metric]} (of different kinds)" for metric in (VAL_LOSS, TRAIN_LOSS)}
    several = f"{', '.join(names[:2])} and {len(names) - 2} more"
    return Comparison(
        title=title or (" and ".join(names) if len(names) <= 2 else several),
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        entries=tuple(_entry(group, columns) for group in groups),
        columns=tuple(each.column for each in columns),
        curves=curves_of(groups),
        settings=settings_of(groups),
        evidence=evidence_of(groups, protocols, columns, tests),
        warnings=warnings_of(groups, protocols),
        best=best_of(columns),
        left_out=tuple(dict.fromkeys(collection.left_out)),
        tests=tests,
        budgets=budgets,
        sheets=sheets,
        metric_names=metric_names,
        version=_version(),
        command=command,
        notes=tuple(notes),
        runs=tuple(row for group in groups for row in _run_metrics(group, columns)),
    )


def write(comparison: Comparison, output: Path, tables: Sequence[str] = (), *, figures: bool = True) -> Path:
    """Writes the page, its figures and the CSV files to a folder, which it makes. Returns the page's path.

    Args:
        comparison: what is written.
        output: the folder.
        tables: formats in which the table of results is written, too: `latex`, `markdown`.
        figures: also write each chart as SVG, PDF, PNG and CSV, in about a second each; without them the page saves no
            PDF.

    Raises ValueError where the folder is a file, for another format, and where a table would have no column.
    """
    for name in tables:
        if name not in TABLES:
            raise ValueError(f"a table has no format {name!r}: name one of {', '.join(TABLES)}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: name a folder")
    output.mkdir(parents=True, exist_ok=True)
    write_csv(comparison, output)
    pdfs = write_figures(figures_of(comparison), output / FIGURES) if figures else {}
    write_text(output / PAGE, render(comparison, pdfs))
    write_tables(comparison, tables, output)
    return output / PAGE


def _entry(group: Group, columns: Sequence[ColumnValues]) -> Entry:
    of_columns = {each.column.key: each.values[group.name] for each in columns if group.name in each.values}
    metrics = {key: estimate_of(each) for key, each in of_columns.items()}
    values = {key: tuple(by_seed(each).values()) for key, each in of_columns.items()}
    folders = tuple(run.path for run in group.compared_runs)
    return Entry(group.name, group.method, group.seeds, folders, metrics, values, group.is_random)


def _run_metrics(group: Group, columns: Sequence[ColumnValues]) -> list[RunMetrics]:
    """A row for each pretraining run, with the mean over its transfers; without pretraining, a row for each seed."""
    folders = {run.seed: run.path for run in reversed(group.compared_runs)}
    rows = []
    for seed in group.seeds:
        metrics = {}
        for each in columns:
            values = [value for (origin, _), value in each.values.get(group.name, {}).items() if origin == seed]
            if values:
                metrics[each.column.key] = fmean(values)
        rows.append(RunMetrics(group.name, seed, folders[seed], metrics))
    return rows


def _sheets(groups: Sequence[Group]) -> tuple[tuple[Sheet, ...], list[str]]:
    """Reconstructions by one run of each of the first entries, and notes on what is not shown."""
    with_weights: dict[str, Path] = {}
    for group in groups:
        for run in group.runs:
            last = checkpoint.last(RunFolder(run.folder).checkpoints)
            if last is not None and last.is_file():
                with_weights.setdefault(group.name, run.folder)
    without = [group.name for group in groups if group.runs and group.name not in with_weights]
    notes = [f"No reconstructions by {join_names(without)}: no checkpoint is left."] if without else []
    if len(with_weights) > SHEETS:
        notes.append(f"Reconstructions are those of the first {SHEETS} entries.")
    try:
        chosen = dict(list(with_weights.items())[:SHEETS])
        return held_out_sheets(chosen) if chosen else (), notes
    except Exception as error:  # a picture that cannot be drawn, because the data is gone, ends no comparison
        return (), [*notes, f"No reconstructions: {first_line(error)}."]


def _nothing_left(runs: Sequence[str | Path], collection: RunCollection) -> str:
    if not runs:
        return "no run is named: name run folders, or a folder that holds some"
    left_out = collection.left_out
    reasons = [f"  {folder}: {reason}" for folder, reason in left_out[:REASONS]]
    more = [f"  and {len(left_out) - REASONS} more"] if len(left_out) > REASONS else []
    paths = ", ".join(display_path(Path(run)) for run in runs)
    return "\n".join([f"no run that can be compared in {paths}:", *reasons, *more])


def _version() -> str:
    try:
        return metadata.version("mim-toolkit")
    except metadata.PackageNotFoundError:
        return ""
