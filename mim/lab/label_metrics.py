"""Metrics of held-out labels as they are shown: a name, a unit and a direction, by the kind of the labels."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from mim import metric_keys as keys
from mim.structures import LabelKind

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class LabelMetric:
    """How a metric of a summary is shown."""

    key: str
    title: str
    unit: str = "%"  # or empty: as it stands in the summary
    better: Literal["higher", "lower"] = "higher"
    most: float = PERCENT  # that it can be

    def in_unit(self, value: float) -> float:
        """A value of the summary in the unit."""
        return PERCENT * value if self.unit == "%" else value


_AUROC = LabelMetric(keys.VAL_AUROC, "AUROC")
_MACRO_F1 = LabelMetric(keys.VAL_MACRO_F1, "macro F1")
METRICS: dict[LabelKind, tuple[LabelMetric, ...]] = {  # the first of a kind is its main metric, that of CHOSEN_BY
    "class": (
        LabelMetric(keys.VAL_TOP1, "top-1"),
        LabelMetric(keys.VAL_TOP5, "top-5"),
        LabelMetric(keys.VAL_BALANCED_ACCURACY, "balanced accuracy"),
        _MACRO_F1,
        _AUROC,
        LabelMetric(keys.VAL_CALIBRATION_ERROR, "calibration error", better="lower"),
    ),
    "classes": (LabelMetric(keys.VAL_MEAN_AP, "mAP"), _AUROC, _MACRO_F1),
    "number": (
        LabelMetric(keys.VAL_R2, "R\N{SUPERSCRIPT TWO}", "", most=1.0),
        LabelMetric(keys.VAL_MAE, "MAE", "", "lower", inf),
        LabelMetric(keys.VAL_RMSE, "RMSE", "", "lower", inf),
        LabelMetric(keys.VAL_SPEARMAN, "Spearman", "", most=1.0),
    ),
    "mask": (
        LabelMetric(keys.VAL_MIOU, "mIoU"),
        LabelMetric(keys.VAL_PIXEL_ACCURACY, "pixel accuracy"),
        LabelMetric(keys.VAL_BOUNDARY_F1, "boundary F1"),
    ),
}
MAIN = tuple(metrics[0] for metrics in METRICS.values())


def kind_of(summary: Collection[str]) -> LabelKind | None:
    """The kind of the labels: that of which a summary has the most metrics, by share; None where it has none."""
    shares = {kind: sum(each.key in summary for each in metrics) / len(metrics) for kind, metrics in METRICS.items()}
    kind = max(shares, key=shares.__getitem__)
    return kind if shares[kind] else None


def metrics_in(summary: Mapping[str, object]) -> list[LabelMetric]:
    """The metrics of a summary, those of its kind of labels."""
    kind = kind_of(summary)
    return [] if kind is None else [each for each in METRICS[kind] if each.key in summary]
