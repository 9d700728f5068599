"""Bootstrap: 95% intervals of metrics of the held-out images, by drawing these again.

A metric is a function of weights: how often each image was drawn. So all resamples are computed at once.

Shapes: N images, R resamples, G groups of images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
FEWEST = 100  # resamples for an interval
CHUNK = 2**21  # weights in memory at once
BUDGET = 2 * 10**8  # of all resamples of a measure together, in values that are weighted
ENDS = (2.5, 97.5)  # percentiles
Measure = Callable[[np.ndarray], dict[str, np.ndarray]]  # weights (N, R) to values (R,) by metric; NaN: not defined


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics that are computed together."""

    measure: Measure
    cost: int  # values that are weighted in one resample

    def values(self, images: int) -> dict[str, float]:
        """Of all images, each once."""
        return {key: float(value_R[0]) for key, value_R in self.measure(np.ones((images, 1))).items()}

    def resamples(self, most: int) -> int:
        """As many as the budget allows, at most `most`; 0 where they would be too few for an interval."""
        count = min(most, BUDGET // max(self.cost, 1))
        return count if count >= min(FEWEST, most) else 0

    def intervals(self, groups_N: np.ndarray, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """The percentile interval of each metric (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).

        A metric has one where it is defined in more than half of the resamples; these alone count.
        """
        parts = [self.measure(weights_NR) for weights_NR in resampled(groups_N, resamples, seed)]
        ends = {}
        for key in parts[0] if parts else ():
            values_R = np.concatenate([part[key] for part in parts])
            values_R = values_R[np.isfinite(values_R)]
            if 2 * len(values_R) > resamples:
                low, high = np.percentile(values_R, ENDS).tolist()
                ends[key] = (low, high)
        return ends


def resampled(groups_N: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image occurs in each resample, (N, R) float64, some resamples at a time.

    As many groups as there are are drawn, with replacement, each with all of its images.
    """
    _, group_N = np.unique(groups_N, return_inverse=True)
    images, groups = len(group_N), int(group_N.max()) + 1
    generator = np.random.default_rng(seed)
    at_once = max(1, CHUNK // images)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn_GR = generator.integers(groups, size=(groups, count)) * count + np.arange(count)
        weights_GR = np.bincount(drawn_GR.ravel(), minlength=groups * count).reshape(groups, count)
        yield weights_GR[group_N].astype(np.float64)
