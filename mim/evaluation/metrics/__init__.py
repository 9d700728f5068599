"""Metrics of held-out images, by the kind of their labels, each with a 95% interval."""

import torch

from mim.evaluation.metrics.base import MOST_VALUES, Collector, Result
from mim.evaluation.metrics.masks import MaskCollector
from mim.evaluation.metrics.numbers import NumberCollector
from mim.evaluation.metrics.one_class import ClassCollector
from mim.evaluation.metrics.several_classes import ClassesCollector
from mim.metric_keys import VAL_MEAN_AP, VAL_MIOU, VAL_R2, VAL_TOP1
from mim.structures import LabelKind, LabelSpec

__all__ = ["CHOSEN_BY", "Collector", "Result", "collector_for"]

COLLECTORS: dict[LabelKind, type[Collector]] = {
    "class": ClassCollector,
    "classes": ClassesCollector,
    "number": NumberCollector,
    "mask": MaskCollector,
}
CHOSEN_BY: dict[LabelKind, str] = {  # the metric that chooses among checkpoints and settings, the higher the better
    "class": VAL_TOP1,
    "classes": VAL_MEAN_AP,
    "number": VAL_R2,
    "mask": VAL_MIOU,
}


def collector_for(spec: LabelSpec, device: torch.device, most_values: int = MOST_VALUES) -> Collector:
    """The collector of these labels; see Collector."""
    return COLLECTORS[spec.kind](spec, device, most_values)
