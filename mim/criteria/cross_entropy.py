"""CrossEntropy: of one class an image, or of one class a pixel.

Shapes: B batch, K classes, H W pixels.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim.criteria.base import UNKNOWN, Criterion, TrainingLabels, mean_of_known, sized, wide
from mim.structures import LabelSpec

ClassWeights = Literal["none", "balanced"] | tuple[float, ...]


class CrossEntropy(Criterion, name="cross_entropy"):
    """-log softmax of the true class; the classes of mixed images may have weights (B, K), which are not smoothed.

    Without keys it is torch.nn.functional.cross_entropy to the last bit. Differs from: there, weighted losses are
    divided by the sum of the weights in the batch, here by the number of samples, so that devices and micro-batches do
    not change the numbers; and each mask counts the same, however many of its pixels are ignored.

    Args:
        class_weights: what the loss of a sample or pixel is multiplied by: `none`; `balanced`, which is scikit-learn's
            samples / (classes * samples of the class), from the training labels; or a list of one number a class.
        smoothing: share of the label that is spread over all classes, 0 to below 1 (Szegedy et al., arXiv:1512.00567).
    """

    kinds = ("class", "mask")
    takes_mixed = True
    weights_K: Tensor | None

    def __init__(
        self,
        spec: LabelSpec,
        labels: TrainingLabels = None,
        *,
        class_weights: ClassWeights = "none",
        smoothing: float = 0.0,
    ):
        super().__init__(spec, labels)
        if not 0 <= smoothing < 1:
            raise ValueError(f"CRITERION.smoothing is {smoothing}: it is a share, at least 0 and below 1")
        self.smoothing = smoothing
        self.register_buffer("weights_K", _weights(spec, labels, class_weights))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return F.cross_entropy(wide(scores), labels, weight=self.weights_K)
        if labels.ndim > 1 or self.weights_K is not None:
            return super().forward(scores, labels)
        known = (labels != UNKNOWN).any()
        labels = torch.where(known, labels, 0)  # a mean over no sample would be NaN
        return known * F.cross_entropy(wide(scores), labels, ignore_index=UNKNOWN, label_smoothing=self.smoothing)

    def losses(self, scores: Tensor, labels: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(
            sized(scores, labels.shape[1:]),
            labels,
            weight=None if plain else self.weights_K,
            ignore_index=UNKNOWN,
            reduction="none",
            label_smoothing=0.0 if plain else self.smoothing,
        )
        return mean_of_known(losses, labels != UNKNOWN)

    def answers(self, scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if self.spec.kind == "mask":
            return sized(scores, size or scores.shape[2:]).softmax(dim=1)
        return scores.double().softmax(dim=1)  # in fp32 sure answers would be equal


def _weights(spec: LabelSpec, labels: TrainingLabels, class_weights: ClassWeights) -> Tensor | None:
    """One weight a class, (K,) float32. Raises ValueError for weights that do not fit."""
    if class_weights == "none":
        return None
    if class_weights == "balanced":
        if labels is None:
            return torch.ones(spec.outputs)
        counts_K = class_counts(spec, labels)
        present = counts_K > 0
        if not present.any():
            raise ValueError("CRITERION.class_weights is balanced, and no training image has a label")
        balanced_K = counts_K.sum() / (present.sum() * counts_K.clip(min=1))
        return torch.from_numpy(np.where(present, balanced_K, 1.0)).float()
    weights = tuple(map(float, class_weights))
    if len(weights) != spec.outputs or min(weights) < 0 or max(weights) == 0:
        raise ValueError(
            f"CRITERION.class_weights is {list(weights)}: it must be none, balanced, or {spec.outputs} numbers, one "
            "for each class in the order of their names, none below 0 and one above 0"
        )
    return torch.tensor(weights)


def class_counts(spec: LabelSpec, labels: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
    """Samples, or pixels of all masks, of each class, (K,) int64."""
    parts = [labels] if isinstance(labels, np.ndarray) else labels
    counts_K = np.zeros(spec.outputs, dtype=np.int64)
    for part in parts:
        counts_K += np.bincount(part[part != UNKNOWN].ravel(), minlength=spec.outputs)
    return counts_K
