"""Curves of pretraining runs over images, FLOPs and seconds, and what they reached within a budget."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from mim.lab.comparison.analysis.separation import best_estimate
from mim.lab.comparison.formatting import join_names
from mim.lab.comparison.result import Axis, Budget, Curve
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.run import Run
from mim.metric_keys import KNN_TOP1, TRAIN_LOSS, VAL_LOSS
from mim.ops.intervals import estimate

METRICS = {  # factor and name
    KNN_TOP1: (100.0, "kNN accuracy, %"),
    VAL_LOSS: (1.0, "held-out loss"),
    TRAIN_LOSS: (1.0, "training loss"),
}
BUDGET_METRIC = KNN_TOP1
MOST = 300  # points of a curve
SHARES = (0.25, 0.5, 1.0)  # of the smallest total
RECENT = 0.5  # the last evaluation within a limit counts where it lies beyond this share of it
AXES: dict[Axis, str] = {"images_seen": "images", "flops": "FLOPs", "seconds": "seconds"}


def curves_of(groups: Sequence[Group]) -> tuple[Curve, ...]:
    """Every metric of every pretraining run, thinned to a few hundred points, over the axes that the run records."""
    curves = [_curve(group.name, run, metric) for metric in METRICS for group in groups for run in group.runs]
    return tuple(thinned(curve) for curve in curves if curve is not None)


def budgets_of(groups: Sequence[Group]) -> tuple[tuple[Budget, ...], list[str]]:
    """What each entry reached within shares of the smallest total, without interpolation, and what cannot be shown."""
    budgets: list[Budget] = []
    sparse: dict[str, list[str]] = {}
    curves: dict[str, list[Curve]] = {}
    for group in groups:
        of_runs = [_curve(group.name, run, BUDGET_METRIC) for run in group.runs]
        if any(of_runs):
            curves[group.name] = [curve for curve in of_runs if curve is not None]
    for axis, word in AXES.items():
        known = {name: each for name, each in curves.items() if all(axis in curve.at for curve in each)}
        if len(known) < 2:
            continue
        least = min(max(curve.at[axis]) for each in known.values() for curve in each)
        for share in SHARES:
            values = {name: [_within(curve, axis, share * least) for curve in each] for name, each in known.items()}
            known_values = {name: [v for v in each if v is not None] for name, each in values.items()}
            complete = {name: estimate(each) for name, each in known_values.items() if len(each) == len(values[name])}
            if len(complete) < len(known):
                sparse.setdefault(word, []).append(f"{share:.0%}")
            if len(complete) >= 2:
                best = best_estimate(complete, "higher")
                budgets.append(Budget(axis, share * least, BUDGET_METRIC, complete, best))
    limits = "; ".join(f"{join_names(shares)} of the {word}" for word, shares in sparse.items())
    note = (
        "Not every entry was evaluated often enough to say what it reached within a part of the shortest run "
        f"({limits}). EVALUATE.every_epochs sets how often."
    )
    return tuple(budgets), [note] if sparse else []


def _curve(entry: str, run: Run, metric: str) -> Curve | None:
    rows = [row for row in run.rows if metric in row]
    if not rows:
        return None
    at: dict[Axis, tuple[float, ...]] = {"images_seen": tuple(row["images_seen"] for row in rows)}
    flops = run.summary.get("flops_per_image")
    if flops:
        at["flops"] = tuple(flops * images for images in at["images_seen"])
    if all("seconds" in row for row in rows):
        at["seconds"] = tuple(row["seconds"] for row in rows)
    factor, _ = METRICS[metric]
    return Curve(entry, run.seed, metric, at, tuple(factor * row[metric] for row in rows))


def thinned(curve: Curve) -> Curve:
    """Means over equal spans, each at its last position: the curve that a longer LOG.every_steps gives."""
    count = len(curve.values)
    if count <= MOST:
        return curve
    ends = [round(part * count / MOST) for part in range(MOST + 1)]
    at: dict[Axis, tuple[float, ...]] = {axis: tuple(at[end - 1] for end in ends[1:]) for axis, at in curve.at.items()}
    values = tuple(fmean(curve.values[start:end]) for start, end in pairwise(ends))
    return Curve(curve.entry, curve.seed, curve.metric, at, values)


def _within(curve: Curve, axis: Axis, limit: float) -> float | None:
    """The last value at or before a limit; None where it is not recent enough, or from before training."""
    evaluations = zip(curve.at[axis], curve.at["images_seen"], curve.values, strict=True)
    before = [evaluation for evaluation in evaluations if evaluation[0] <= limit]
    if not before:
        return None
    position, images, value = before[-1]
    return value if images > 0 and position > RECENT * limit else None
