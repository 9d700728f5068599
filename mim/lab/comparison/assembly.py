"""Assembly: from run folders to a Comparison, and from that to the files that show it."""

from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from statistics import fmean

from mim.engine import checkpoint
from mim.io.files import write_text
from mim.lab.comparison.curves import QUANTITIES, budgets_of, curves_of
from mim.lab.comparison.fairness import settings_of, unlike_losses, unlike_machines, warnings_of
from mim.lab.comparison.formatting import first_line, listed, shown_path
from mim.lab.comparison.groups import Group, grouped
from mim.lab.comparison.metrics import (
    ALL_PAIRS,
    AT_START,
    Figure,
    by_seed,
    estimate_of,
    paired_tests,
    pretraining_figures,
    transfer_figures,
)
from mim.lab.comparison.page import render
from mim.lab.comparison.protocols import protocols_of
from mim.lab.comparison.provenance import Gathered, gather
from mim.lab.comparison.reconstructions import held_out_sheets
from mim.lab.comparison.result import Comparison, Entry, RunFigures, Sheet
from mim.lab.comparison.studies import Studies
from mim.lab.comparison.tables import write_csv
from mim.metric_keys import TRAIN_LOSS, VAL_LOSS

SHEETS = 6  # entries whose reconstructions are shown side by side
REASONS = 5  # of folders left out, in an error
PAGE = "comparison.html"
SECTIONS = ("accuracy", "loss", "cost")


def compare(
    runs: Sequence[str | Path],
    *,
    title: str = "",
    reconstructions: bool = True,
    search: bool = True,
    command: str = "",
) -> Comparison:
    """Compares pretraining runs, and the probes and fine-tunings that came from them.

    Args:
        runs: run folders, or folders that hold run folders at any depth, such as the output of a study.
        title: of the page; by default the names of the entries.
        reconstructions: also draw held-out images as each entry sees them, which builds every model.
        search: also look for probes and fine-tunings beside the runs; they are known by what their folders record.
        command: what makes this comparison again, told on the page.

    A folder that cannot be compared is named in `left_out`, with the reason. Raises ValueError where a path does not
    exist, and where no run is left.
    """
    studies = Studies()
    gathered = gather([Path(run) for run in runs], studies, search)
    groups = grouped(gathered, studies)
    if not groups:
        raise ValueError(_nothing_left(runs, gathered))
    protocols = protocols_of(groups, studies, gathered.left_out)
    losses = unlike_losses(groups)
    own = pretraining_figures(groups, losses, unlike_machines(groups))
    figures = sorted([*own, *transfer_figures(protocols)], key=_place)
    tests = paired_tests(figures, [group.name for group in groups])
    budgets, notes = budgets_of(groups)
    if tests and len(groups) > ALL_PAIRS:
        notes.append(
            f"Paired tests are of each entry against {groups[0].name}, as there are more than {ALL_PAIRS} entries."
        )
    sheets: tuple[Sheet, ...] = ()
    if reconstructions:
        sheets, more = _sheets(groups)
        notes += more
    words = {quantity: name for quantity, (_, name) in QUANTITIES.items()}
    if losses:
        words.update({quantity: f"{words[quantity]} (of different kinds)" for quantity in (VAL_LOSS, TRAIN_LOSS)})
    return Comparison(
        title=title or _title(groups),
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        entries=tuple(_entry(group, figures) for group in groups),
        columns=tuple(figure.column for figure in figures),
        curves=curves_of(groups),
        settings=settings_of(groups),
        warnings=warnings_of(groups, protocols),
        left_out=tuple(dict.fromkeys(gathered.left_out)),
        tests=tests,
        budgets=budgets,
        sheets=sheets,
        names_of_quantities=words,
        version=_version(),
        command=command,
        notes=tuple(notes),
        runs=tuple(row for group in groups for row in _rows(group, figures)),
    )


def write(comparison: Comparison, output: Path) -> Path:
    """comparison.html, comparison.csv and comparison_runs.csv in a folder, which is made. Gives the page's path.

    Raises ValueError where the path is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: name a folder")
    output.mkdir(parents=True, exist_ok=True)
    write_csv(comparison, output)
    write_text(output / PAGE, render(comparison))
    return output / PAGE


def _place(figure: Figure) -> tuple[int, bool]:
    """By section, and what random weights reach after what learned ones do."""
    return SECTIONS.index(figure.column.section), figure.column.key == AT_START


def _entry(group: Group, figures: Sequence[Figure]) -> Entry:
    held = {figure.column.key: figure.values[group.name] for figure in figures if group.name in figure.values}
    return Entry(
        name=group.name,
        method=group.method,
        seeds=group.seeds,
        folders=tuple(run.shown for run in group.everything),
        figures={key: estimate_of(values) for key, values in held.items()},
        values={key: tuple(by_seed(values).values()) for key, values in held.items()},
    )


def _rows(group: Group, figures: Sequence[Figure]) -> list[RunFigures]:
    """A row a pretraining run, with the mean of what was judged of it; else a row a seed."""
    folders = {run.seed: run.shown for run in reversed(group.everything)}
    found = []
    for seed in group.seeds:
        held = {}
        for figure in figures:
            values = [value for (origin, _), value in figure.values.get(group.name, {}).items() if origin == seed]
            if values:
                held[figure.column.key] = fmean(values)
        found.append(RunFigures(group.name, seed, folders[seed], held))
    return found


def _sheets(groups: Sequence[Group]) -> tuple[tuple[Sheet, ...], list[str]]:
    """Reconstructions by a run of each of the first entries, and notes on what is not shown."""
    with_weights: dict[str, Path] = {}
    for group in groups:
        for run in group.runs:
            last = checkpoint.last(run.folder / "checkpoints")
            if last is not None and last.is_file():
                with_weights.setdefault(group.name, run.folder)
    without = [group.name for group in groups if group.runs and group.name not in with_weights]
    notes = [f"No reconstructions by {listed(without)}: no checkpoint is left."] if without else []
    if len(with_weights) > SHEETS:
        notes.append(f"Reconstructions are those of the first {SHEETS} entries.")
    try:
        chosen = dict(list(with_weights.items())[:SHEETS])
        return held_out_sheets(chosen) if chosen else (), notes
    except Exception as error:  # a picture that cannot be drawn (the data is gone, say) ends no comparison
        return (), [*notes, f"No reconstructions: {first_line(error)}."]


def _title(groups: Sequence[Group]) -> str:
    names = [group.name for group in groups]
    return " and ".join(names) if len(names) <= 2 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _nothing_left(runs: Sequence[str | Path], gathered: Gathered) -> str:
    if not runs:
        return "no run is named: name run folders, or a folder that holds some"
    told = [f"  {folder}: {reason}" for folder, reason in gathered.left_out[:REASONS]]
    more = [f"  and {len(gathered.left_out) - REASONS} more"] if len(gathered.left_out) > REASONS else []
    return "\n".join(
        [f"no run that can be compared in {', '.join(shown_path(Path(run)) for run in runs)}:", *told, *more]
    )


def _version() -> str:
    try:
        return metadata.version("mim-toolkit")
    except metadata.PackageNotFoundError:
        return ""
