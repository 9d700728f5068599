"""Curves of pretraining runs over images, FLOPs and seconds, and what they reached within a budget."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from mim.lab.comparison.formatting import listed
from mim.lab.comparison.groups import Group
from mim.lab.comparison.result import Axis, Budget, Curve
from mim.lab.comparison.runs import Run
from mim.metric_keys import KNN_TOP1, TRAIN_LOSS, VAL_LOSS
from mim.ops.intervals import estimate

QUANTITIES = {  # of metrics.jsonl: factor and name
    KNN_TOP1: (100.0, "kNN accuracy, %"),
    VAL_LOSS: (1.0, "held-out loss"),
    TRAIN_LOSS: (1.0, "training loss"),
}
JUDGED = KNN_TOP1  # what budgets are judged by
MOST = 300  # points of a curve
SHARES = (0.25, 0.5, 1.0)  # of the smallest total
RECENT = 0.5  # the last evaluation within a limit lies beyond this share of it, else it says too little
AXES: dict[Axis, str] = {"images_seen": "images", "flops": "FLOPs", "seconds": "seconds"}


def curves_of(groups: Sequence[Group]) -> tuple[Curve, ...]:
    """Every quantity of every pretraining run, thinned to a few hundred points. An axis that a run does not tell of is
    left out.
    """
    found = []
    for quantity, (factor, _) in QUANTITIES.items():
        for group in groups:
            for run in group.runs:
                curve = _curve(group.name, run, quantity, factor)
                if curve is not None:
                    found.append(_thinned(curve))
    return tuple(found)


def budgets_of(groups: Sequence[Group]) -> tuple[tuple[Budget, ...], list[str]]:
    """What each entry had reached within shares of the smallest total of all, and notes on what is not shown.

    Only evaluations at or before the limit count; nothing is read off between two of them.
    """
    budgets: list[Budget] = []
    sparse: dict[str, list[str]] = {}
    curves = {
        group.name: [curve for run in group.runs if (curve := _curve(group.name, run, JUDGED, 100.0)) is not None]
        for group in groups
    }
    curves = {name: own for name, own in curves.items() if own}
    for axis, word in AXES.items():
        known = {name: own for name, own in curves.items() if all(axis in curve.at for curve in own)}
        if len(known) < 2:
            continue
        least = min(max(curve.at[axis]) for own in known.values() for curve in own)
        for share in SHARES:
            reached = {name: [_within(curve, axis, share * least) for curve in own] for name, own in known.items()}
            whole = {
                name: estimate([value for value in values if value is not None])
                for name, values in reached.items()
                if None not in values
            }
            if len(whole) < len(known):
                sparse.setdefault(word, []).append(f"{share:.0%}")
            if len(whole) >= 2:
                budgets.append(Budget(axis, share * least, JUDGED, whole))
    if not sparse:
        return tuple(budgets), []
    limits = "; ".join(f"{listed(shares)} of the {word}" for word, shares in sparse.items())
    return tuple(budgets), [
        "Not every entry was evaluated often enough to say what it had reached within a part of the shortest run "
        f"({limits}): EVALUATE.every_epochs decides."
    ]


def _curve(entry: str, run: Run, quantity: str, factor: float) -> Curve | None:
    rows = [row for row in run.rows if quantity in row]
    if not rows:
        return None
    at: dict[Axis, tuple[float, ...]] = {"images_seen": tuple(row["images_seen"] for row in rows)}
    flops = run.figures.get("flops_per_image")
    if flops:
        at["flops"] = tuple(flops * images for images in at["images_seen"])
    if all("seconds" in row for row in rows):
        at["seconds"] = tuple(row["seconds"] for row in rows)
    return Curve(entry, run.seed, quantity, at, tuple(factor * row[quantity] for row in rows))


def _thinned(curve: Curve) -> Curve:
    """Means over equal spans, each at its last place: the curve that a longer LOG.every_steps would have given."""
    count = len(curve.values)
    if count <= MOST:
        return curve
    cuts = [round(part * count / MOST) for part in range(MOST + 1)]
    at: dict[Axis, tuple[float, ...]] = {axis: tuple(at[end - 1] for end in cuts[1:]) for axis, at in curve.at.items()}
    values = tuple(fmean(curve.values[start:end]) for start, end in pairwise(cuts))
    return Curve(curve.entry, curve.seed, curve.quantity, at, values)


def _within(curve: Curve, axis: Axis, limit: float) -> float | None:
    """The last value at or before a limit; None where that is too long before it, or before training."""
    inside = [(place, value) for place, value in zip(curve.at[axis], curve.values, strict=True) if place <= limit]
    place, value = inside[-1] if inside else (0.0, 0.0)
    trained = [images for images, at in zip(curve.at["images_seen"], curve.at[axis], strict=True) if at <= limit]
    return value if inside and trained[-1] > 0 and place > RECENT * limit else None
