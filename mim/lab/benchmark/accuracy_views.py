"""Views of a benchmark of time to an accuracy: tables, lines, notes, plain values and a picture."""

import io
from dataclasses import asdict
from statistics import mean
from typing import Any

from rich.table import Table

from mim.lab.benchmark.accuracy import MEASURES, SLICE_S, AccuracyResult, Curve, Measure, TimeRatio, evaluation_times
from mim.lab.benchmark.profile_picture import COLOURS, WIDTH
from mim.lab.console import new_table, number

HEIGHT = 5.0  # inches


def accuracy_tables(result: AccuracyResult) -> dict[str, Table]:
    """Accuracies over seconds of training, and each side as a whole; means over seeds."""
    tables = {}
    for measure, name in MEASURES.items():
        over_time = new_table("s", *result.names, words=0)
        for index, seconds in enumerate(evaluation_times(result.settings)):
            points = [[curve.points[index] for curve in result.of(side)] for side in result.names]
            over_time.add_row(f"{seconds:,.0f}", *(_mean([each.accuracy(measure) for each in side]) for side in points))
        tables[f"{name} accuracy of held-out images over seconds of training"] = over_time
    columns = [f"{word}\n{name}" for name in MEASURES.values() for word in ("best", "s to best")]
    sides = new_table("", *columns, "images/s", "parameters")
    for side in result.names:
        curves, cells = result.of(side), []
        for measure in MEASURES:
            best = [curve.best(measure) for curve in curves]
            cells += [_mean([each.accuracy(measure) for each in best]), f"{mean(each.seconds for each in best):,.0f}"]
        speed = number(mean(curve.points[-1].images / curve.points[-1].seconds for curve in curves))
        sides.add_row(side, *cells, speed, f"{curves[0].parameters:,}")
    return {**tables, "Sides": sides}


def accuracy_lines(result: AccuracyResult) -> list[str]:
    """Ours against each peer and by each measure: a line for each seed, and the median of several."""
    lines = []
    for against in result.settings.against:
        for measure, name in MEASURES.items():
            lines += [_ratio_line(ratio) for ratio in result.ratios(against, measure)]
            together = result.median_ratio(against, measure)
            if len(result.settings.seeds) > 1:
                text = "is not given: see the line of each" if together is None else f"{together:.2f}"
                lines.append(f"ours / {against}, {name}: median over {len(result.settings.seeds)} seeds {text}")
    return lines


def accuracy_notes(result: AccuracyResult) -> list[str]:
    """How it was measured, and how the sides differ."""
    settings, (bank, held_out) = result.settings, result.images
    first = {curve.name: curve for curve in reversed(result.curves)}
    own = f"Of ours alone: {' '.join(settings.ours)}." if settings.ours else "All sides have the same config."
    return [
        f"{settings.budget:g} s of training of each side, in turns of {SLICE_S:g} s in one process; seeds "
        f"{', '.join(map(str, settings.seeds))}. Seconds count from the first step: reading images and compiling "
        "count, building models and evaluations do not.",
        f"Batch {result.batch:,}, {result.precision}; {held_out:,} held-out images judged by {bank:,} to train. "
        "All sides get the batches of this toolkit's loader: the same images under the same augmentation and seed.",
        f"All sides follow the config's OPTIMIZER and SCHEDULE over the share of the budget that has passed. {own}",
        "kNN and probe (a logistic regression; 0 where it has not converged): the mean of the patch tokens of whole "
        "images, judged by the same code for all sides. An accuracy counts as reached at the first evaluation that "
        f"has it: every {settings.every:g} s.",
        *(f"{name}: {first[name].model}" for name in result.names),
        *(f"{name}: {line}" for name in result.names for line in first[name].differences),
    ]


def accuracy_values(result: AccuracyResult) -> dict[str, Any]:
    """All of a result but what every benchmark has, as plain values."""
    return {
        **{"precision": result.precision, "batch": result.batch, **asdict(result.settings)},
        "bank_images": result.images[0],
        "held_out_images": result.images[1],
        "curves": [asdict(curve) for curve in result.curves],
        "ratios": [
            asdict(ratio) | {"ratio": ratio.ratio}
            for name in result.settings.against
            for measure in MEASURES
            for ratio in result.ratios(name, measure)
        ],
        "median_ratios": {
            name: {measure: result.median_ratio(name, measure) for measure in MEASURES}
            for name in result.settings.against
        },
    }


def accuracy_picture(result: AccuracyResult) -> bytes:
    """A PNG file: accuracies over seconds, a line for each side and seed, and the best of each peer."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=150, layout="constrained")
    for axes, (measure, name) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for side, colour in zip(result.names, COLOURS, strict=False):
            curves = result.of(side)
            for index, curve in enumerate(curves):
                _draw(axes, curve, measure, colour, side if index == 0 and measure == "knn" else "")
            if side in result.settings.against:
                best = mean(curve.best(measure).accuracy(measure) for curve in curves)
                axes.axhline(
                    best, color=colour, linewidth=0.8, linestyle="--", label=f"{name}, best of {side}: {best:.3f}"
                )
        axes.set_xlabel("seconds of training")
        axes.set_ylabel(f"{name} accuracy, held-out images")
        axes.set_xlim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title(
        f"{result.machine}, PyTorch {result.machine.versions['torch']}; batch {result.batch}, {result.precision}",
        loc="left",
        fontsize=8,
        x=0,
    )
    figure.suptitle(f"{result.theme}: accuracy over time", fontsize=12, weight="bold", x=0.01, ha="left")
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def _draw(axes: Any, curve: Curve, measure: Measure, colour: str, label: str) -> None:
    seconds, accuracies = [point.seconds for point in curve.points], [point.accuracy(measure) for point in curve.points]
    axes.plot(seconds, accuracies, color=colour, linewidth=1.6, marker="o", markersize=3, label=label or None)


def _mean(values: list[float]) -> str:
    return f"{mean(values):.3f}"


def _ratio_line(ratio: TimeRatio) -> str:
    text = f"ours / {ratio.against}, seed {ratio.seed}: its best {MEASURES[ratio.measure]} {ratio.accuracy:.3f} after "
    text += f"{ratio.theirs_s:,.0f} s, "
    if ratio.ours_s is None or ratio.ratio is None:
        text += "which ours has not reached"
    else:
        text += f"ours after {ratio.ours_s:,.0f} s: {ratio.ratio:.2f} times as fast"
    if not ratio.trained:
        text += "; but random weights are as good, so this says nothing: give a longer --budget"
    return text
