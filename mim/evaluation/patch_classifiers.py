"""Classifiers of patches on frozen features, and the choice of their settings.

Shapes: M patches of a bank, N patches, D feature width, K classes, S settings.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.evaluation.patch_features import PatchBank, PatchMaps, mean_iou, region_counts, to_pixels

Distance = Literal["cosine", "l2"]
DISTANCES: tuple[Distance, ...] = ("cosine", "l2")
NEIGHBOURS = (1, 3, 10, 30)
PENALTIES = tuple(10 ** (-6 + 11 * step / 7) for step in range(8))  # 8 values from 1e-6 to 1e5, evenly in the exponent
ITERATIONS = 1000
AT_ONCE = 1024  # patches that are compared with the bank at once


class Setting(Protocol):
    """What is chosen of a classifier."""

    def describe(self) -> str:
        """It in words."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """A vote of the k nearest patches."""

    k: int
    distance: Distance

    def describe(self) -> str:
        return f"k {self.k}, {self.distance} distance"


@dataclass(frozen=True, slots=True)
class Logistic:
    """A logistic regression with this inverse strength of the L2 penalty."""

    c: float

    def describe(self) -> str:
        return f"C {float(f'{self.c:.3g}'):g}"


class Standardised:
    """Features with mean 0 and variance 1 over a bank; a channel that never changes becomes 0."""

    def __init__(self, bank: PatchBank):
        self.mean_D, self.std_D = bank.features_MD.mean(dim=0), bank.features_MD.std(dim=0, correction=0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean_D) / torch.where(self.std_D > 0, self.std_D, 1.0)


class NearestPatches:
    """The class that most of the k nearest patches of a bank have, for several settings at once.

    Of two classes with as many votes the lower one wins.
    """

    def __init__(self, bank: PatchBank, settings: Sequence[Nearest]):
        self.settings, self._scale = settings, Standardised(bank)
        self._bank_MD, self._labels_M = self._scale(bank.features_MD), bank.labels_M
        self._directions_MD = F.normalize(self._bank_MD, dim=1)

    def __call__(self, features_ND: Tensor) -> Tensor:
        """(S, N) int64: the class for each setting."""
        return torch.cat([self._answers(self._scale(part_ND)) for part_ND in features_ND.split(AT_ONCE)], dim=1)

    def _answers(self, features_ND: Tensor) -> Tensor:
        most = min(max(setting.k for setting in self.settings), len(self._bank_MD))
        votes = {}
        for distance in {setting.distance for setting in self.settings}:
            if distance == "cosine":
                near_NM = F.normalize(features_ND, dim=1) @ self._directions_MD.T
            else:
                near_NM = -torch.cdist(features_ND, self._bank_MD)
            votes[distance] = self._labels_M[near_NM.topk(most, dim=1).indices]
        return torch.stack([votes[each.distance][:, : each.k].mode(dim=1).values for each in self.settings])


class LogisticPatches:
    """Scikit-learn's logistic regression, one for each setting."""

    def __init__(self, bank: PatchBank, settings: Sequence[Logistic]):
        from sklearn.exceptions import ConvergenceWarning  # a second to import, and only this needs it
        from sklearn.linear_model import LogisticRegression

        self.settings, self._scale, self._models = settings, Standardised(bank), list[Any]()
        features_MD, labels_M = self._scale(bank.features_MD).cpu().numpy(), bank.labels_M.cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in the original, where iterations end the search
            for setting in settings:
                model = LogisticRegression(C=setting.c, max_iter=ITERATIONS)
                self._models.append(model.fit(features_MD, labels_M))

    def __call__(self, features_ND: Tensor) -> Tensor:
        """(S, N) int64: the class for each setting."""
        array_ND = self._scale(features_ND).cpu().numpy()
        answers_SN = [torch.from_numpy(model.predict(array_ND)) for model in self._models]
        return torch.stack(answers_SN).to(features_ND.device)


PatchClassifier = NearestPatches | LogisticPatches


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def count_regions(
    classifiers: Sequence[PatchClassifier], parts: Iterable[PatchMaps], classes: int, device: torch.device
) -> list[Tensor]:
    """For each classifier the pixels of each class over all images and for each setting, (S, K, 3) int64.

    See region_counts.
    """
    totals = [
        torch.zeros(len(classifier.settings), classes, 3, dtype=torch.long, device=device) for classifier in classifiers
    ]
    for part in parts:
        for classifier, total_SK3 in zip(classifiers, totals, strict=True):
            for number, answer_BHW in enumerate(predicted_masks(classifier, part)):
                total_SK3[number] += region_counts(answer_BHW, part.labels_BHW, classes)
    return totals


def predicted_masks(classifier: PatchClassifier, part: PatchMaps) -> Tensor:
    """The class of each pixel for each setting, (S, B, H, W): that of its patch."""
    size, grid = part.labels_BHW.shape[1:], part.features_BhwD.shape[:3]
    answers_SN = classifier(part.features_BhwD.flatten(0, 2))
    return torch.stack([to_pixels(answer_N.reshape(grid), size) for answer_N in answers_SN])


def best_setting(total_SK3: Tensor) -> int:
    """The number of the setting with the highest mIoU; of equal ones the first."""
    scores = [mean_iou(counts_K3) for counts_K3 in total_SK3]
    return max(range(len(scores)), key=lambda number: (scores[number] == scores[number], scores[number]))
