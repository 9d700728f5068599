"""Figures of a card: the table of a comparison over the seeds of one recipe, and the curves of the run as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult

from mim.engine.run_folder import CONFIG
from mim.lab.comparison import compare
from mim.lab.comparison.analysis.metrics import AT_START
from mim.lab.comparison.formatting import capital
from mim.lab.comparison.result import Comparison, Entry
from mim.lab.comparison.views.numbers import bounds_of, heading_text, interval_texts, style_of
from mim.lab.comparison.views.papers import markdown
from mim.lab.layout import seedless, slug
from mim.lab.watch.charts import charts_of
from mim.pictures.canvas import pixels
from mim.pictures.files import write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c8501e", "#8a8a8a", "#2a8a57", "#7a4fa3", "#8a6d1c")
PANEL = (4.2, 2.9)  # inches


@dataclass(frozen=True, slots=True)
class Figures:
    """What a comparison says of the recipe of one run."""

    table: str = ""  # Markdown; empty where the run has no figure that a comparison shows
    seeds: int = 1
    evidence: tuple[str, ...] = ()  # what the figures cannot bear
    results: tuple[EvalResult, ...] = ()  # for the front matter


def figures_of(run: Path, others: Sequence[Path], dataset: str) -> Figures:
    """The figures of a run folder, over all seeds of its recipe.

    Args:
        run: the folder.
        others: further folders with runs of the same recipe; those beside it whose names differ by the seed alone, and
            probes and fine-tunings that started from any of them, are found without.
        dataset: the name of the data set.
    """
    try:
        comparison = compare([run, *_seeds_beside(run), *others], reconstructions=False)
    except ValueError:  # nothing in it can be compared
        return Figures()
    entry = next((each for each in comparison.entries if _holds(each, run)), None)
    if entry is None:
        return Figures()
    alone = replace(comparison, entries=(entry,), best={})
    try:
        table = markdown(alone)
    except ValueError:  # it has neither an accuracy nor a loss
        table = ""
    return Figures(table, len(entry.seeds), comparison.evidence, tuple(_results(alone, entry, dataset)))


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> bool:
    """Draws losses and metrics over images seen into a file; False where there are none."""
    charts = charts_of(rows)
    if not charts:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(charts), PANEL[1]), dpi=150, layout="constrained")
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        for number, line in enumerate(chart.lines):
            mark = "o" if len(line.images) < 2 else None
            axes.plot(line.images, line.values, COLOURS[number % len(COLOURS)], label=line.name, lw=1.4, marker=mark)
        _label(axes, chart.title)
    write_picture(path, pixels(figure))
    return True


def _label(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("images seen", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def _seeds_beside(run: Path) -> list[Path]:
    """Folders beside a run whose names differ by the seed alone."""
    run = run.resolve()
    name = seedless(run.name)
    if name == run.name:
        return []
    beside = (path for path in sorted(run.parent.iterdir()) if path != run and seedless(path.name) == name)
    return [path for path in beside if (path / CONFIG).is_file()]


def _holds(entry: Entry, run: Path) -> bool:
    return run.resolve() in [Path(folder).resolve() for folder in entry.folders]


def _results(comparison: Comparison, entry: Entry, dataset: str) -> list[EvalResult]:
    """The accuracies after training, each with its interval in its name."""
    results = []
    for column in comparison.columns:
        estimate = entry.metrics.get(column.key)
        if estimate is None or column.section != "accuracy" or column.key == AT_START:
            continue
        style, bounds = style_of(column.unit, [estimate], column.most), bounds_of(column, [entry])
        interval = interval_texts([estimate], style, bounds)[0].strip()
        seeds = f"{estimate.runs} seed{'s' * (estimate.runs > 1)}"
        heading = heading_text(capital(column.title), column.unit)
        results.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=slug(dataset),
                dataset_name=dataset,
                metric_type=slug(column.title),
                metric_name=f"{heading} ({', '.join(filter(None, (interval, seeds)))})",
                metric_value=round(estimate.mean, 4),
            )
        )
    return results
