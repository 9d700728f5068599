"""NumberCollector: metrics of columns of numbers.

Shapes: B batch, N images, K columns, R resamples.
"""

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mim.evaluation.metrics.base import Collector
from mim.evaluation.metrics.bootstrap import Measured
from mim.evaluation.metrics.ranking import spearman
from mim.io.formatting import list_names
from mim.metric_keys import VAL_BY_COLUMN, VAL_MAE, VAL_R2, VAL_RMSE, VAL_SPEARMAN
from mim.ops.ratios import mean_of_defined, ratio

KEYS = (VAL_MAE, VAL_RMSE, VAL_R2, VAL_SPEARMAN)
EQUAL = 1e-12  # share of the variance below which the values of a resample count as equal


class NumberCollector(Collector):
    """Mean absolute and root mean squared error, R2 and Spearman's correlation of each column, and their means.

    R2 and Spearman's correlation of a column are not defined where all its labels are equal, and the latter where all
    answers are. The mean is over the columns in which a metric is defined.
    """

    def columns(self, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"labels": labels.double(), "answers": answers.double()}

    def known(self, data: dict[str, np.ndarray]) -> np.ndarray:
        return ~np.isnan(data["labels"]).all(axis=1)

    def measured(self, data: dict[str, np.ndarray]) -> list[Measured]:
        return [Measured(partial(self._means, data), 4 * data["labels"].size)]

    def _means(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        values_KMR = self._each(data, weights_NR)
        return {key: mean_of_defined(values_KMR[:, number]) for number, key in enumerate(KEYS)}

    def _each(self, data: dict[str, np.ndarray], weights_NR: np.ndarray) -> np.ndarray:
        """The four metrics of each column (K, 4, R)."""
        values_KMR = np.full((self.spec.outputs, len(KEYS), weights_NR.shape[1]), np.nan)
        for number in range(self.spec.outputs):
            known_N = ~np.isnan(data["labels"][:, number])
            labels_N, answers_N = (data[name][known_N, number] for name in ("labels", "answers"))
            if len(labels_N) and np.isfinite(answers_N).all():
                values_KMR[number] = _metrics(labels_N, answers_N, weights_NR[known_N])
        return values_KMR

    def why_undefined(self, key: str, data: dict[str, np.ndarray]) -> str:
        if key not in KEYS:
            return ""
        values_K = self._each(data, np.ones((len(data["labels"]), 1)))[:, KEYS.index(key), 0]
        missing = [name for name, value in zip(self.spec.names, values_K, strict=True) if np.isnan(value)]
        if not missing:
            return ""
        if not np.isfinite(data["answers"]).all():
            return f"answers are not finite, in columns such as {list_names(missing)}"
        lack = "whose labels are all unknown" if key in (VAL_MAE, VAL_RMSE) else "whose labels or answers are all equal"
        return f"without columns {lack}: {list_names(missing)}"

    def extras(self, data: dict[str, np.ndarray]) -> dict[str, Any]:
        values_KM = self._each(data, np.ones((len(data["labels"]), 1)))[..., 0].tolist()
        names = [key.rpartition("/")[2] for key in KEYS]
        columns = {
            column: {name: value for name, value in zip(names, values, strict=True) if np.isfinite(value)}
            for column, values in zip(self.spec.names, values_KM, strict=True)
        }
        return {"by_name": {VAL_BY_COLUMN: columns}}


def _metrics(labels_N: np.ndarray, answers_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The metrics of KEYS of one column, (4, R)."""
    total_R, error_N = weights_NR.sum(axis=0), answers_N - labels_N
    centred_N = labels_N - labels_N.mean()
    squares_R = ratio(centred_N**2 @ weights_NR, total_R) - ratio(centred_N @ weights_NR, total_R) ** 2
    squares_R[squares_R <= EQUAL * (centred_N**2).max()] = 0
    absolute_R, squared_R = ratio(np.abs(error_N) @ weights_NR, total_R), ratio(error_N**2 @ weights_NR, total_R)
    correlation_R = spearman(labels_N, answers_N, weights_NR)
    return np.stack([absolute_R, np.sqrt(squared_R), 1 - ratio(squared_R, squares_R), correlation_R])
