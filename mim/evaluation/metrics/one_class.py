"""ClassCollector: metrics of one class an image.

Shapes: B batch, N images, K classes, R resamples.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mim.evaluation.metrics.base import Collector
from mim.evaluation.metrics.bootstrap import Measured
from mim.evaluation.metrics.ranking import auroc
from mim.io.formatting import list_names
from mim.metric_keys import (
    VAL_AUROC,
    VAL_BALANCED_ACCURACY,
    VAL_BY_CLASS,
    VAL_CALIBRATION_ERROR,
    VAL_MACRO_F1,
    VAL_TOP1,
    VAL_TOP5,
)
from mim.ops.calibration import calibration_error, calibration_of
from mim.ops.ratios import mean_of_defined, ratio

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TOP = 5


class ClassCollector(Collector):
    """Top-1, top-5 of more than five classes, balanced accuracy, macro F1, calibration error and AUROC.

    Balanced accuracy and AUROC are means over the classes that held-out images show; macro F1 is over those that they
    show or that are answered. These are scikit-learn's values.
    """

    of_scores = (VAL_AUROC,)

    def columns(self, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        confidence_B, answers_B = answers.max(dim=1)
        top_classes = answers.topk(min(TOP, self.spec.outputs), dim=1).indices
        return {
            "labels": labels,
            "answers": answers_B,
            "in_top": (top_classes == labels[:, None]).any(dim=1),
            "confidence": confidence_B,
            self.SCORES: answers,
        }

    def known(self, data: dict[str, np.ndarray]) -> np.ndarray:
        return data["labels"] >= 0

    def measured(self, data: dict[str, np.ndarray]) -> list[Measured]:
        images = len(data["labels"])
        measured = [Measured(partial(self._counted, data), images)]
        if self.SCORES in data:
            columns = 1 if self.spec.outputs == 2 else self.spec.outputs
            measured.append(Measured(partial(self._ranked, data), 4 * images * columns))
        return measured

    def _counted(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        labels_N, answers_N = data["labels"], data["answers"]
        right_N, total_R = (labels_N == answers_N).astype(np.float64), weights_NR.sum(axis=0)
        truth_KR, answered_KR = self._by_class(labels_N) @ weights_NR, self._by_class(answers_N) @ weights_NR
        hits_KR = self._by_class(labels_N, right_N) @ weights_NR
        top = {VAL_TOP1: right_N @ weights_NR / total_R}
        if self.spec.outputs > TOP:
            top[VAL_TOP5] = data["in_top"].astype(np.float64) @ weights_NR / total_R
        return {
            **top,
            VAL_BALANCED_ACCURACY: mean_of_defined(ratio(hits_KR, truth_KR)),
            VAL_MACRO_F1: mean_of_defined(ratio(2 * hits_KR, truth_KR + answered_KR)),
            VAL_CALIBRATION_ERROR: calibration_error(data["confidence"], right_N, weights_NR),
        }

    def _ranked(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        scores_NK = data[self.SCORES]
        if not np.isfinite(scores_NK).all():
            return {VAL_AUROC: np.full(weights_NR.shape[1], np.nan)}
        classes: Sequence[int] = (1,) if self.spec.outputs == 2 else range(self.spec.outputs)
        present = [number for number in classes if (data["labels"] == number).any()]
        areas = [auroc(scores_NK[:, number], data["labels"] == number, weights_NR) for number in present]
        return {VAL_AUROC: mean_of_defined(np.stack(areas)) if areas else np.full(weights_NR.shape[1], np.nan)}

    def _by_class(self, classes_N: np.ndarray, values_N: np.ndarray | None = None) -> "csr_matrix":
        """(K, N), with the value of each image in the row of its class, 1 by default."""
        from scipy.sparse import csr_matrix  # imported where it is used: a fifth of a second

        images = len(classes_N)
        values_N = np.ones(images) if values_N is None else values_N
        return csr_matrix((values_N, (classes_N, np.arange(images))), shape=(self.spec.outputs, images))

    def why_undefined(self, key: str, data: dict[str, np.ndarray]) -> str:
        absent = [name for name, count in zip(self.spec.names, self._counts(data["labels"]), strict=True) if not count]
        if key == VAL_AUROC and len(absent) == self.spec.outputs - 1:
            only = next(name for name in self.spec.names if name not in absent)
            return f"all held-out images are of one class, {only}"
        if key in (VAL_AUROC, VAL_BALANCED_ACCURACY) and absent:
            return f"without classes that no held-out image shows: {list_names(absent)}"
        return ""

    def _counts(self, labels_N: np.ndarray) -> np.ndarray:
        return np.bincount(labels_N, minlength=self.spec.outputs)

    def extras(self, data: dict[str, np.ndarray]) -> dict[str, Any]:
        labels_N, answers_N, classes = data["labels"], data["answers"], self.spec.outputs
        confusion_KK = np.bincount(labels_N * classes + answers_N, minlength=classes**2).reshape(classes, classes)
        shares = zip(self.spec.names, confusion_KK.diagonal().tolist(), confusion_KK.sum(axis=1).tolist(), strict=True)
        return {
            "by_name": {VAL_BY_CLASS: {name: hits / count for name, hits, count in shares if count}},
            "confusion_KK": torch.from_numpy(confusion_KK),
            "calibration": calibration_of(data["confidence"], labels_N == answers_N),
        }
