"""Charts of a run: its losses and the metrics of its evaluations over images seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf

from mim.lab.comparison.analysis.curves import thinned
from mim.lab.comparison.result import Curve
from mim.lab.label_metrics import METRICS, LabelMetric
from mim.metric_keys import KNN_TOP1, LOGISTIC_TOP1, TRAIN_LOSS, VAL_BASELINE, VAL_LOSS

LOSSES = {TRAIN_LOSS: "training", VAL_LOSS: "held-out", VAL_BASELINE: "held-out, of the mean"}
PROBES = (LabelMetric(KNN_TOP1, "kNN"), LabelMetric(LOGISTIC_TOP1, "logistic regression"))


@dataclass(frozen=True, slots=True)
class Line:
    """A metric at each of some numbers of images seen."""

    name: str
    images: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines of one unit."""

    title: str
    lines: tuple[Line, ...]


def charts_of(rows: Sequence[dict[str, float]]) -> list[Chart]:
    """Losses, percentages, coefficients that are at most 1, and errors: those of which the rows have values."""
    groups: dict[str, list[Line | None]] = {"Loss": [_line(rows, key, name, 1.0) for key, name in LOSSES.items()]}
    metrics = {each.key: each for each in (*PROBES, *(each for kind in METRICS.values() for each in kind))}
    for metric in metrics.values():
        title = "Scores, %" if metric.unit == "%" else "Errors" if isinf(metric.most) else "Scores"
        groups.setdefault(title, []).append(_line(rows, metric.key, metric.title, metric.in_unit(1.0)))
    charts = [Chart(title, tuple(line for line in lines if line is not None)) for title, lines in groups.items()]
    return [chart for chart in charts if chart.lines]


def _line(rows: Sequence[dict[str, float]], key: str, name: str, factor: float) -> Line | None:
    points = [(row["images_seen"], factor * row[key]) for row in rows if key in row]
    if not points:
        return None
    images, values = zip(*points, strict=True)
    curve = thinned(Curve("", 0, key, {"images_seen": images}, values))
    return Line(name, curve.at["images_seen"], curve.values)
