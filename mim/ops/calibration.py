"""Calibration: how often answers of a confidence are right.

Shapes: N images, R resamples, B bins.
"""

from dataclasses import dataclass

import numpy as np

from mim.ops.ratios import ratio

BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """Answers in bins of equal width, by the probability of the class that is answered."""

    counts_B: np.ndarray  # answers in each bin
    confidence_B: np.ndarray  # mean probability of the answers; NaN in an empty bin
    accuracy_B: np.ndarray  # share of right answers; NaN in an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy over answers; NaN without any.

        Source: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, equation 3, with 15 bins.
        """
        filled_B = self.counts_B > 0
        distance_B = np.abs(self.confidence_B - self.accuracy_B)[filled_B] * self.counts_B[filled_B]
        return float(ratio(distance_B.sum(), self.counts_B.sum()))


def calibration_of(confidence_N: np.ndarray, right_N: np.ndarray) -> Calibration:
    """The bins of these answers."""
    counts_B, confidence_B, right_B = _sums(confidence_N, right_N, np.ones((len(right_N), 1)))[..., 0]
    return Calibration(counts_B, ratio(confidence_B, counts_B), ratio(right_B, counts_B))


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """The error of each resample (R,)."""
    counts_BR, confidence_BR, right_BR = _sums(confidence_N, right_N, weights_NR)
    return np.abs(confidence_BR - right_BR).sum(axis=0) / counts_BR.sum(axis=0)


def _sums(confidence_N: np.ndarray, right_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Of each bin: answers, the sum of their confidence, right ones, (3, B, R)."""
    bin_N = (np.nan_to_num(confidence_N) * BINS).astype(np.int64).clip(0, BINS - 1)
    in_bin_BN = (bin_N == np.arange(BINS)[:, None]).astype(np.float64)
    return np.stack([each_BN @ weights_NR for each_BN in (in_bin_BN, in_bin_BN * confidence_N, in_bin_BN * right_N)])
