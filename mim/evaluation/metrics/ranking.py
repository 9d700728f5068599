"""Metrics of an order, of images that are drawn again with weights: AUROC, average precision, Spearman's correlation.

With weights of 1 they are those of scikit-learn and SciPy; images with equal scores share a rank.

Shapes: N images, R resamples, V different values of a score.
"""

import numpy as np

from mim.ops.ratios import ratio


def auroc(scores_N: np.ndarray, true_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The area under the ROC curve (R,), NaN where all or no images are true."""
    value_N = _value_numbers(scores_N)
    positive_VR = _sums(value_N, weights_NR, true_N)
    negative_VR = _sums(value_N, weights_NR) - positive_VR
    below_VR = negative_VR.cumsum(axis=0) - negative_VR / 2
    return ratio((positive_VR * below_VR).sum(axis=0), positive_VR.sum(axis=0) * negative_VR.sum(axis=0))


def average_precision(scores_N: np.ndarray, true_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The mean precision over the steps of recall (R,), NaN where no image is true."""
    value_N = _value_numbers(-scores_N)
    positive_VR = _sums(value_N, weights_NR, true_N)
    precision_VR = positive_VR.cumsum(axis=0) / _sums(value_N, weights_NR).cumsum(axis=0).clip(min=1)
    return ratio((positive_VR * precision_VR).sum(axis=0), positive_VR.sum(axis=0))


def spearman(first_N: np.ndarray, second_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The correlation of ranks (R,), NaN where all first or all second values are equal."""
    total_R = weights_NR.sum(axis=0)
    first_NR, second_NR = (_ranks(values_N, weights_NR) - (total_R + 1) / 2 for values_N in (first_N, second_N))
    weighted_NR = weights_NR * first_NR
    covariance_R = (weighted_NR * second_NR).sum(axis=0)
    variances_R = (weighted_NR * first_NR).sum(axis=0) * (weights_NR * second_NR**2).sum(axis=0)
    return ratio(covariance_R, np.sqrt(variances_R))


def _value_numbers(values_N: np.ndarray) -> np.ndarray:
    """The number of each value among the different ones, in their order."""
    return np.unique(values_N, return_inverse=True)[1]


def _sums(value_N: np.ndarray, weights_NR: np.ndarray, factor_N: np.ndarray | None = None) -> np.ndarray:
    """The weights of the images of each value, (V, R)."""
    order_N = value_N.argsort(kind="stable")
    sorted_NR = weights_NR[order_N] if factor_N is None else weights_NR[order_N] * factor_N[order_N, None]
    starts_V = np.flatnonzero(np.diff(value_N[order_N], prepend=-1))
    return sorted_NR if len(starts_V) == len(value_N) else np.add.reduceat(sorted_NR, starts_V, axis=0)


def _ranks(values_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The rank of each image in each resample (N, R), from 1; the mean of the ranks of equal values."""
    value_N = _value_numbers(values_N)
    count_VR = _sums(value_N, weights_NR)
    return (count_VR.cumsum(axis=0) - (count_VR - 1) / 2)[value_N]
