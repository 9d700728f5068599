"""Criterion: the family of parts that compare scores with labels, and turn scores into answers.

Shapes: B batch, N training images, K classes or columns of numbers, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.registry import Component
from mim.structures import LabelKind, LabelSpec

UNKNOWN = -1  # the class of an image or pixel without a label
WORDS: dict[LabelKind, str] = {
    "class": "one class an image",
    "classes": "several classes at once",
    "number": "numbers",
    "mask": "a class a pixel",
}
TrainingLabels = np.ndarray | Iterable[np.ndarray] | None


class Criterion(Component, nn.Module, ABC, section="CRITERION"):
    """A scalar loss, averaged over the samples with a known label, in fp32 or wider. Unknown labels cost nothing.

    Labels are of the kind of `spec`: class (B,) int64, -1 unknown; classes and number (B, K) float, NaN unknown; mask
    (B, H, W) int64, -1 unknown. Scores are (B, outputs); of masks (B, outputs, h, w), and they are resized to the mask
    (bilinear, corners not aligned). Each sample counts the same, however many of its pixels or columns are known: so
    the loss does not depend on how a batch is split.

    What it takes from the training labels is in buffers, which a checkpoint holds where the criterion is a part of the
    model.

    To write one, subclass with `name="..."`, set `kinds` and implement `losses` and `answers`. The keyword-only
    arguments of its constructor are its keys.

    Args:
        spec: what the labels are.
        labels: those of the training images: an array (N,) or (N, K), of masks any iterable of arrays (H, W), which is
            read where a key needs it. None where a checkpoint brings what was taken from them.

    Raises ValueError where it is not for this kind of labels.
    """

    kinds: ClassVar[tuple[LabelKind, ...]]
    takes_mixed: ClassVar[bool] = False  # whether labels can be the class weights (B, K) of mixed images

    def __init__(self, spec: LabelSpec, labels: TrainingLabels = None):
        super().__init__()
        self.check(spec)
        self.spec = spec

    @classmethod
    def check(cls, spec: LabelSpec) -> None:
        """Raises ValueError for labels that this criterion is not for."""
        if spec.kind not in cls.kinds:
            fitting = [name for name, part in sorted(cls.members().items()) if spec.kind in part.kinds]
            allowed = " or ".join(WORDS[kind] for kind in cls.kinds)
            raise ValueError(
                f"CRITERION.name {cls.name} is for {allowed}, and the labels are of kind {spec.kind} "
                f"({WORDS[spec.kind]}): use CRITERION.name {' or '.join(fitting)}"
            )

    @property
    def outputs(self) -> int:
        """The numbers that a readout must give for an image or a pixel."""
        return self.spec.outputs

    @abstractmethod
    def losses(self, scores: Tensor, labels: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
        """The loss of each sample (B,), 0 where its label is unknown, and whether it is known (B,) bool.

        Args:
            plain: without weights and smoothing, as held-out images are judged.
        """

    @abstractmethod
    def answers(self, scores: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Probabilities of classes, (B, K) float64; of masks (B, K, H, W) float32; numbers in the unit of the labels.

        Args:
            size: (H, W) of the answer for masks; that of the scores by default.
        """

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss; 0, with a gradient of 0, where no label is known."""
        losses_B, known_B = self.losses(scores, labels)
        return losses_B.sum() / known_B.sum().clamp(min=1)


def wide(scores: Tensor) -> Tensor:
    """Scores in fp32 or wider."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def sized(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores in fp32 or wider, of masks resized to `size` (H, W); of images, `size` is empty."""
    scores = wide(scores)
    if tuple(scores.shape[2:]) == tuple(size):
        return scores
    return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False)


def mean_of_known(losses: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over what is known of each sample (B,), and whether anything of it is; losses are 0 elsewhere."""
    if losses.ndim == 1:
        return losses, known
    counts_B = known.flatten(1).sum(dim=1)
    return losses.flatten(1).sum(dim=1) / counts_B.clamp(min=1), counts_B > 0
