"""Ordinal: one class an image, where classes have an order.

Shapes: B batch, K classes, T = K - 1 thresholds between neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.criteria.base import UNKNOWN, Criterion, TrainingLabels, wide
from mim.structures import LabelSpec


class Ordinal(Criterion, name="ordinal"):
    """-log of the probability of the true class, by one decision at each threshold: is it beyond, if it came this far?

    The order is that of the classes' names. The probability of being beyond a threshold is the product of the decisions
    up to there, so it never grows with the threshold.
    Source: CORN (Shi, Cao and Raschka, arXiv:2111.08851), equation 5. Differs from: the mean is over samples, not over
    all decisions of the batch.
    """

    kinds = ("class",)

    def __init__(self, spec: LabelSpec, labels: TrainingLabels = None):
        super().__init__(spec, labels)
        if spec.outputs < 2:
            raise ValueError(f"CRITERION.name ordinal needs at least two classes, and the labels have {spec.outputs}")

    @property
    def outputs(self) -> int:
        return self.spec.outputs - 1

    def losses(self, scores: Tensor, labels: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        scores_BT = wide(scores)
        thresholds_T = torch.arange(self.outputs, device=labels.device)
        beyond_BT, reached_BT = (compare(thresholds_T, labels[:, None]) for compare in (torch.lt, torch.le))
        losses_BT = F.binary_cross_entropy_with_logits(scores_BT, beyond_BT.to(scores_BT.dtype), reduction="none")
        return (losses_BT * reached_BT).sum(dim=1), labels != UNKNOWN  # an unknown label reaches no threshold

    def answers(self, scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        scores_BT = scores.double()
        beyond_BK = F.pad(F.logsigmoid(scores_BT).cumsum(dim=1), (1, 0))
        stays_BK = F.pad(F.logsigmoid(-scores_BT), (0, 1))
        return (beyond_BK + stays_BK).exp()
