"""ClassesCollector: metrics of several classes at once.

Shapes: B batch, N images, K classes, R resamples.
"""

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mim.evaluation.metrics.base import Collector
from mim.evaluation.metrics.bootstrap import Measured
from mim.evaluation.metrics.ranking import auroc, average_precision
from mim.io.formatting import list_names
from mim.metric_keys import VAL_AUROC, VAL_BY_CLASS, VAL_MACRO_F1, VAL_MEAN_AP
from mim.ops.ratios import mean_of_defined, ratio

THRESHOLD = 0.5  # of a probability, above which a class is answered
TRUE, FALSE, UNKNOWN = 1, 0, 2  # in columns


class ClassesCollector(Collector):
    """Mean average precision, AUROC, and macro F1 at a probability of 0.5, each the mean over classes.

    Average precision is over the classes that a held-out image has; AUROC over those that one has and another has not;
    F1 over those that an image has or that are answered. Each class is judged on the images where it is known.
    """

    of_scores = (VAL_MEAN_AP, VAL_AUROC)

    def columns(self, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {
            "labels": labels.nan_to_num(UNKNOWN).byte(),
            "answers": answers > THRESHOLD,
            self.SCORES: answers,
        }

    def known(self, data: dict[str, np.ndarray]) -> np.ndarray:
        return (data["labels"] != UNKNOWN).any(axis=1)

    def measured(self, data: dict[str, np.ndarray]) -> list[Measured]:
        measured = [Measured(partial(self._counted, data), data["labels"].size)]
        if self.SCORES in data:
            measured.append(Measured(partial(self._ranked, data), 8 * data["labels"].size))
        return measured

    def _counted(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        true_NK, known_NK = data["labels"] == TRUE, data["labels"] != UNKNOWN
        answered_NK = data["answers"] & known_NK
        counts = (true_NK & answered_NK, true_NK, answered_NK)
        hits_KR, true_KR, answered_KR = (each_NK.T.astype(np.float64) @ weights_NR for each_NK in counts)
        return {VAL_MACRO_F1: mean_of_defined(ratio(2 * hits_KR, true_KR + answered_KR))}

    def _ranked(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        values_KR = {
            VAL_MEAN_AP: self._each(average_precision, data, weights_NR),
            VAL_AUROC: self._each(auroc, data, weights_NR),
        }
        return {key: mean_of_defined(each_KR) for key, each_KR in values_KR.items()}

    def _each(self, metric: Any, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> np.ndarray:
        """A metric of each class (K, R); NaN where it is not defined, and everywhere where scores are not finite."""
        values_KR = np.full((self.spec.outputs, weights_NR.shape[1]), np.nan)
        scores_NK = data[self.SCORES]
        for number in range(self.spec.outputs) if np.isfinite(scores_NK).all() else ():
            known_N = data["labels"][:, number] != UNKNOWN
            if known_N.any():
                true_N = data["labels"][known_N, number] == TRUE
                values_KR[number] = metric(scores_NK[known_N, number], true_N, weights_NR[known_N])
        return values_KR

    def why_undefined(self, key: str, data: dict[str, np.ndarray]) -> str:
        has_K, lacks_K = ((data["labels"] == value).any(axis=0) for value in (TRUE, FALSE))
        judged_K = {VAL_MEAN_AP: has_K, VAL_AUROC: has_K & lacks_K}.get(key)
        if judged_K is None:
            return ""
        left_out = [name for name, judged in zip(self.spec.names, judged_K, strict=True) if not judged]
        lack = "no held-out image has" if key == VAL_MEAN_AP else "all or no held-out images have"
        return f"without classes that {lack}: {list_names(left_out)}" if left_out else ""

    def extras(self, data: dict[str, np.ndarray]) -> dict[str, Any]:
        if self.SCORES not in data or not len(data["labels"]):
            return {}
        values_K = self._each(average_precision, data, np.ones((len(data["labels"]), 1)))[:, 0].tolist()
        named = zip(self.spec.names, values_K, strict=True)
        return {"by_name": {VAL_BY_CLASS: {name: value for name, value in named if np.isfinite(value)}}}
