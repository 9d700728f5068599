"""Ratios and means that are NaN where they are not defined, without a warning.

Shapes: K classes, R resamples.
"""

import numpy as np


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def mean_of_defined(values_KR: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is not NaN; NaN where nothing is."""
    known_KR = ~np.isnan(values_KR)
    return ratio(np.where(known_KR, values_KR, 0.0).sum(axis=0), known_KR.sum(axis=0))
