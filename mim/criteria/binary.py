"""Binary: several classes at once, each true or not.

Shapes: B batch, K classes.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim.criteria.base import Criterion, TrainingLabels, mean_of_known, wide
from mim.structures import LabelSpec


class Binary(Criterion, name="binary"):
    """The binary cross-entropy of each class, averaged over the classes of a sample that are known.

    Args:
        positive_weights: what the loss of a class that is true is multiplied by: `none`, or `balanced`, the number of
            training images without the class over the number with it, so that both weigh the same.
    """

    kinds = ("classes",)
    positive_weights_K: Tensor | None

    def __init__(
        self,
        spec: LabelSpec,
        labels: TrainingLabels = None,
        *,
        positive_weights: Literal["none", "balanced"] = "none",
    ):
        super().__init__(spec, labels)
        weights_K = None
        if positive_weights == "balanced":
            weights_K = torch.ones(spec.outputs)
            if isinstance(labels, np.ndarray):
                with_K, without_K = (np.nansum(each_NK, axis=0) for each_NK in (labels, 1 - labels))
                ratio_K = without_K / with_K.clip(min=1)
                weights_K = torch.from_numpy(np.where((with_K > 0) & (without_K > 0), ratio_K, 1.0)).float()
        self.register_buffer("positive_weights_K", weights_K)

    def losses(self, scores: Tensor, labels: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        known_BK, scores_BK = ~labels.isnan(), wide(scores)
        losses_BK = F.binary_cross_entropy_with_logits(
            scores_BK,
            labels.nan_to_num(0.0).to(scores_BK.dtype),
            reduction="none",
            pos_weight=None if plain else self.positive_weights_K,
        )
        return mean_of_known(losses_BK * known_BK, known_BK)

    def answers(self, scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return scores.double().sigmoid()
