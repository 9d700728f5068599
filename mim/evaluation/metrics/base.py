"""Collector: takes answers and labels of a rank, and gives the metrics of all ranks.

Shapes: B batch, N images over all ranks, K classes or columns, G groups.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mim.engine.distributed.world import World
from mim.evaluation.metrics.bootstrap import RESAMPLES, Measured
from mim.metric_keys import VAL_LOSS, VAL_SAMPLES, VAL_UNDEFINED, interval
from mim.ops.calibration import Calibration
from mim.structures import LabelSpec

MOST_VALUES = 2**23  # of all images together that are kept of one column: 64 MiB of float64


@dataclass(frozen=True, slots=True)
class Result:
    """The metrics of held-out images, each counted once. A metric that is not defined is missing, never NaN."""

    samples: int  # images with a label
    metrics: dict[str, float] = field(default_factory=dict)  # by metric key
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95%, by the key of the metric
    reasons: dict[str, str] = field(default_factory=dict)  # why a metric, an interval or parts of a mean are missing
    by_name: dict[str, Any] = field(default_factory=dict)  # VAL_BY_CLASS or VAL_BY_COLUMN, and its values
    confusion_KK: Tensor | None = None  # images or pixels by true class (row) and answer (column), int64
    calibration: Calibration | None = None

    def details(self) -> dict[str, Any]:
        """What a summary holds beside the metrics."""
        ends = {interval(key): list(pair) for key, pair in self.intervals.items()}
        return {
            VAL_SAMPLES: self.samples,
            **self.by_name,
            **ends,
            **({VAL_UNDEFINED: self.reasons} if self.reasons else {}),
        }


class Collector(ABC):
    """Answers and labels of one rank, on its device. Adding a batch is no host sync.

    Memory has a bound: above MOST_VALUES values of all images together (`most_values`) scores are not kept, and what
    needs them is left out, with the reason.

    Args:
        spec: what the labels are.
        device: where answers and labels are.
        most_values: see above; 0 keeps no scores.
    """

    SCORES: ClassVar[str] = "scores"  # the column that is kept up to the bound
    of_scores: ClassVar[tuple[str, ...]] = ()  # keys of the metrics that need it

    def __init__(self, spec: LabelSpec, device: torch.device, most_values: int = MOST_VALUES):
        self.spec, self.device, self.most_values = spec, device, most_values
        self._rows: list[int] = []
        self._parts: dict[str, list[Tensor]] = {}
        self._values = 0  # of the bounded column that this rank was given

    @abstractmethod
    def columns(self, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What is kept of each image of a batch, (B, ...) by name."""

    @abstractmethod
    def known(self, data: dict[str, np.ndarray]) -> np.ndarray:
        """Which images have a label, (N,) bool."""

    @abstractmethod
    def measured(self, data: dict[str, np.ndarray]) -> list[Measured]:
        """The metrics of these images, all of which have a label."""

    @abstractmethod
    def why_undefined(self, key: str, data: dict[str, np.ndarray]) -> str:
        """Why a metric of these images is missing or, of several classes or columns, leaves some out; else empty."""

    def extras(self, data: dict[str, np.ndarray]) -> dict[str, Any]:
        """More fields of Result."""
        return {}

    def add(self, answers: Tensor, labels: Tensor, rows: Sequence[int], losses_B: Tensor) -> None:
        """Takes a batch.

        Args:
            answers: of Criterion.answers, for masks at the size of the labels.
            labels: of the kind of the spec; unknown ones are not counted.
            rows: position of each image among the held-out ones; no two ranks have one in common.
            losses_B: plain losses of Criterion.losses, for the held-out loss.
        """
        self._rows += rows
        columns = {"losses": losses_B.double(), **self.columns(answers, labels)}
        self._values += columns[self.SCORES].numel() if self.SCORES in columns else 0
        for name, column in columns.items():
            if name != self.SCORES or self._values <= self.most_values:
                self._parts.setdefault(name, []).append(column)
            else:
                self._parts[name] = []

    def result(
        self, world: World, groups_N: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = 0
    ) -> Result:
        """The metrics over all ranks, the same on each. A host sync, of all ranks together.

        Args:
            groups_N: the group of each row: groups, not images, are drawn again for intervals.
            resamples: for intervals; 0 for no intervals.
        """
        data = self._gathered(world)
        return world.from_main(lambda: self._computed(data, groups_N, resamples, seed))

    def _gathered(self, world: World) -> dict[str, np.ndarray]:
        """The columns of all ranks in the order of rows, of images with a label; without scores above the bound."""
        values = int(world.sum(torch.tensor([self._values], device=self.device)))  # host sync
        rows_N = world.gather(torch.tensor(self._rows, dtype=torch.long, device=self.device)).cpu().numpy()
        order_N = rows_N.argsort(kind="stable")
        data = {"rows": rows_N[order_N]}
        assert len(np.unique(rows_N)) == len(rows_N), "an image is counted once"
        for name, empty in self._empty().items():
            if name != self.SCORES or values <= self.most_values:
                column = world.gather(torch.cat([empty, *self._parts.get(name, [])]))
                data[name] = column.cpu().numpy()[order_N]
        known_N = self.known(data)
        return {name: column[known_N] for name, column in data.items()}

    def _empty(self) -> dict[str, Tensor]:
        """Columns of no image, which a rank without images has."""
        answers, labels = self.no_images()
        losses = torch.empty(0, dtype=torch.float64, device=self.device)
        return {"losses": losses, **self.columns(answers.to(self.device), labels.to(self.device))}

    def no_images(self) -> tuple[Tensor, Tensor]:
        """Answers and labels of a batch of 0."""
        outputs = self.spec.outputs
        several = self.spec.kind in ("classes", "number")
        labels = torch.empty(0, outputs) if several else torch.empty(0, dtype=torch.long)
        return torch.empty(0, outputs, dtype=torch.float64), labels

    def _computed(self, data: dict[str, np.ndarray], groups_N: np.ndarray | None, resamples: int, seed: int) -> Result:
        images = len(data["rows"])
        if not images:
            return Result(0, reasons={VAL_LOSS: "no held-out image has a label"}, **self.extras(data))
        groups_N = data["rows"] if groups_N is None else np.asarray(groups_N)[data["rows"]]
        result = Result(images, **self.extras(data))
        if self.SCORES not in data:
            why = f"the scores of {images:,} images are more than the {self.most_values:,} values that are kept"
            result.reasons.update(dict.fromkeys(self.of_scores, why))
        losses = Measured(lambda weights_NR: {VAL_LOSS: data["losses"] @ weights_NR / weights_NR.sum(axis=0)}, images)
        for each in (*self.measured(data), losses):
            values = each.values(images)
            defined = [key for key, value in values.items() if np.isfinite(value)]
            for key in values:
                why = self.why_undefined(key, data) or ("" if key in defined else "its value is not finite")
                result.reasons.update({key: why} if why else {})
            result.metrics.update({key: values[key] for key in defined})
            if resamples and defined:
                self._add_intervals(result, each, defined, groups_N, resamples, seed)
        return result

    def _add_intervals(
        self, result: Result, each: Measured, keys: list[str], groups_N: np.ndarray, resamples: int, seed: int
    ) -> None:
        count, groups = each.resamples(resamples), len(np.unique(groups_N))
        ends = each.intervals(groups_N, count, seed) if count and groups > 1 else {}
        result.intervals.update({key: ends[key] for key in keys if key in ends})
        why = "it is not defined in most resamples"
        if groups < 2:
            why = "it needs at least two images" if groups == result.samples else "it needs at least two groups"
        elif not count:
            why = f"it would take too long for {result.samples:,} images"
        result.reasons.update({interval(key): why for key in keys if key not in ends})
