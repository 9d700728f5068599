"""Criteria of numbers: errors of columns that are standardised by the training labels.

Shapes: B batch, N training images, K columns.
"""

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim.criteria.base import Criterion, TrainingLabels, mean_of_known, wide
from mim.io.checks import above_zero
from mim.structures import LabelSpec


class NumberCriterion(Criterion):
    """Base: a readout predicts each column with the mean 0 and the standard deviation 1 that the training labels get.

    So a column in thousands does not outweigh others, and a readout that starts at 0 starts at the mean. The loss is
    the mean over the known columns of a sample, in standard deviations; answers are in the unit of the labels.
    """

    kinds = ("number",)
    mean_K: Tensor
    std_K: Tensor

    def __init__(self, spec: LabelSpec, labels: TrainingLabels = None):
        super().__init__(spec, labels)
        mean_K, std_K = np.zeros(spec.outputs), np.ones(spec.outputs)
        if isinstance(labels, np.ndarray):
            mean_K, std_K = _moments(labels.astype(np.float64))
        self.register_buffer("mean_K", torch.from_numpy(mean_K))
        self.register_buffer("std_K", torch.from_numpy(std_K))

    @abstractmethod
    def elementwise(self, scores_BK: Tensor, standard_BK: Tensor) -> Tensor:
        """The loss of each column (B, K)."""

    def losses(self, scores: Tensor, labels: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        known_BK, scores_BK = ~labels.isnan(), wide(scores)
        standard_BK = ((labels.double() - self.mean_K) / self.std_K).nan_to_num(0.0)
        return mean_of_known(self.elementwise(scores_BK, standard_BK.to(scores_BK.dtype)) * known_BK, known_BK)

    def answers(self, scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return scores.double() * self.std_K + self.mean_K


class MSE(NumberCriterion, name="mse"):
    """Squared error, in variances of the training labels."""

    def elementwise(self, scores_BK: Tensor, standard_BK: Tensor) -> Tensor:
        return (scores_BK - standard_BK) ** 2


class L1(NumberCriterion, name="l1"):
    """Absolute error, in standard deviations of the training labels; outliers weigh less than in `mse`."""

    def elementwise(self, scores_BK: Tensor, standard_BK: Tensor) -> Tensor:
        return (scores_BK - standard_BK).abs()


class Huber(NumberCriterion, name="huber"):
    """Half the squared error below `delta`, growing linearly above.

    Args:
        delta: the error at which the loss becomes linear, in standard deviations of the training labels; positive.
    """

    def __init__(self, spec: LabelSpec, labels: TrainingLabels = None, *, delta: float = 1.0):
        super().__init__(spec, labels)
        above_zero("CRITERION", delta=delta)
        self.delta = delta

    def elementwise(self, scores_BK: Tensor, standard_BK: Tensor) -> Tensor:
        return F.huber_loss(scores_BK, standard_BK, delta=self.delta, reduction="none")


def _moments(labels_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the known values of each column; 0 and 1 where none is known or all are equal."""
    mean_K, std_K = np.zeros(labels_NK.shape[1]), np.ones(labels_NK.shape[1])
    for column, values_N in enumerate(labels_NK.T):
        values_N = values_N[~np.isnan(values_N)]
        if values_N.size:
            mean_K[column] = values_N.mean()
        if values_N.size and np.ptp(values_N):
            std_K[column] = values_N.std()
    return mean_K, std_K
