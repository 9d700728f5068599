"""Accuracy of class scores. Each sample is counted once, with any number of ranks.

Shapes: B batch, K classes.
"""

import torch
from torch import Tensor

from mim.engine.distributed.world import World

TOP = 5


class Tally:
    """Counts of one classifier on one rank, on its device. Adding a batch is no host sync."""

    def __init__(self, classes: int, device: torch.device):
        self.classes = classes
        self._confusion_KK = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # cross-entropy, samples in the top 5

    def add(self, scores_BK: Tensor, labels_B: Tensor) -> None:
        """Takes a batch of scores and true classes."""
        scores_BK = scores_BK.float()
        pairs = labels_B * self.classes + scores_BK.argmax(dim=1)
        self._confusion_KK.view(-1).scatter_add_(0, pairs, torch.ones_like(pairs, dtype=torch.float64))
        top_classes = scores_BK.topk(min(TOP, self.classes), dim=1).indices
        in_top = (top_classes == labels_B[:, None]).any(dim=1).sum()
        loss = torch.nn.functional.cross_entropy(scores_BK, labels_B, reduction="sum")
        self._sums += torch.stack([loss.double(), in_top.double()])

    def over_ranks(self, world: World) -> "Counts":
        """The counts of all ranks. A host sync."""
        confusion_KK, sums = world.sum(self._confusion_KK).cpu(), world.sum(self._sums).cpu()
        return Counts(confusion_KK.long(), *sums.tolist())


class Counts:
    """The results of a classifier.

    Args:
        confusion_KK: samples by true class (row) and answer (column).
        loss: sum of the cross-entropy.
        in_top: samples with their class among the five highest scores.

    Attributes: loss, the mean cross-entropy; top1 and top5, the shares of samples with their class among the highest
    scores (top5 is 1 with five classes or fewer).
    """

    def __init__(self, confusion_KK: Tensor, loss: float, in_top: float):
        self.confusion_KK, self.samples = confusion_KK, int(confusion_KK.sum())
        samples = max(self.samples, 1)
        self.top1, self.top5, self.loss = int(confusion_KK.trace()) / samples, in_top / samples, loss / samples

    def by_class(self, names: tuple[str, ...]) -> dict[str, float]:
        """Share of correct answers for each class that has samples."""
        correct, samples = self.confusion_KK.diagonal().tolist(), self.confusion_KK.sum(dim=1).tolist()
        return {name: hits / count for name, hits, count in zip(names, correct, samples, strict=True) if count}
