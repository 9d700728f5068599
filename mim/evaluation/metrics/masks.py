"""MaskCollector: metrics of a class a pixel.

Shapes: B batch, N images, H W pixels, K classes, R resamples.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim.engine.distributed.world import World
from mim.evaluation.metrics.base import MOST_VALUES, Collector
from mim.evaluation.metrics.bootstrap import Measured
from mim.evaluation.metrics.boundary import boundary_f1
from mim.io.formatting import list_names
from mim.metric_keys import VAL_BOUNDARY_F1, VAL_BY_CLASS, VAL_MIOU, VAL_PIXEL_ACCURACY
from mim.ops.ratios import mean_of_defined, ratio
from mim.structures import LabelSpec


class MaskCollector(Collector):
    """mIoU and pixel accuracy over the pixels of all images, and the mean boundary F1 of an image.

    The mean of the IoU is over the classes that a held-out pixel has or that are answered. Ignored pixels count
    nowhere. Of each image the counts of each class are kept, up to the bound; above it mIoU and pixel accuracy have no
    interval.
    """

    def __init__(self, spec: LabelSpec, device: torch.device, most_values: int = MOST_VALUES):
        super().__init__(spec, device, most_values)
        self._confusion_KK = torch.zeros(spec.outputs, spec.outputs, dtype=torch.float64, device=device)
        self._total_KK = np.zeros((spec.outputs, spec.outputs), dtype=np.int64)

    def add(self, answers: Tensor, labels: Tensor, rows: Sequence[int], losses_B: Tensor) -> None:
        answers_BHW = answers.argmax(dim=1) if answers.ndim == 4 else answers
        known_BHW = labels >= 0
        pairs = (labels * self.spec.outputs + answers_BHW).masked_fill(~known_BHW, 0)
        self._confusion_KK.view(-1).scatter_add_(0, pairs.flatten(), known_BHW.flatten().double())
        super().add(answers_BHW, labels, rows, losses_B)

    def result(self, world: World, *arguments: Any, **options: Any) -> Any:
        self._total_KK = world.sum(self._confusion_KK).cpu().numpy().astype(np.int64)  # host sync
        return super().result(world, *arguments, **options)

    def columns(self, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        known_BP = (labels >= 0).flatten(1)
        classes_BP, answers_BP = labels.clamp(min=0).flatten(1), answers.flatten(1)
        counts = ((classes_BP, known_BP & (classes_BP == answers_BP)), (classes_BP, known_BP), (answers_BP, known_BP))
        return {
            "known": known_BP.any(dim=1),
            "boundary": boundary_f1(labels, answers, self.spec.outputs),
            self.SCORES: torch.stack([self._counts(*each) for each in counts], dim=1),
        }

    def _counts(self, classes_BP: Tensor, counted_BP: Tensor) -> Tensor:
        """Pixels of each class that count, (B, K) int32."""
        zeros_BK = torch.zeros(len(classes_BP), self.spec.outputs, dtype=torch.int32, device=classes_BP.device)
        return zeros_BK.scatter_add_(1, classes_BP, counted_BP.int())

    def no_images(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0, 1, 1, dtype=torch.long), torch.empty(0, 1, 1, dtype=torch.long)

    def known(self, data: dict[str, np.ndarray]) -> np.ndarray:
        return data["known"]

    def measured(self, data: dict[str, np.ndarray]) -> list[Measured]:
        images, total_KK = len(data["known"]), self._total_KK
        boundary = Measured(partial(_boundary, data["boundary"]), images)
        if self.SCORES in data:
            counts_NC = data[self.SCORES].reshape(images, -1).astype(np.float64)
            return [Measured(partial(_overlap, counts_NC), counts_NC.size // 4), boundary]
        counts_1C = np.stack([total_KK.diagonal(), total_KK.sum(axis=1), total_KK.sum(axis=0)]).reshape(1, -1)
        too_many = 10**18  # more than any budget
        return [Measured(lambda weights_NR: _overlap(counts_1C.astype(np.float64), weights_NR[:1]), too_many), boundary]

    def why_undefined(self, key: str, data: dict[str, np.ndarray]) -> str:
        if key == VAL_BOUNDARY_F1:
            return "" if np.isfinite(data["boundary"]).any() else "no held-out mask and no answer has a boundary"
        absent = [name for name, count in zip(self.spec.names, self._union_K(), strict=True) if not count]
        return f"without classes that no held-out pixel has: {list_names(absent)}" if absent and key == VAL_MIOU else ""

    def _union_K(self) -> np.ndarray:
        return self._total_KK.sum(axis=0) + self._total_KK.sum(axis=1) - self._total_KK.diagonal()

    def extras(self, data: dict[str, np.ndarray]) -> dict[str, Any]:
        overlap_K = ratio(self._total_KK.diagonal(), self._union_K()).tolist()
        named = {name: value for name, value in zip(self.spec.names, overlap_K, strict=True) if np.isfinite(value)}
        return {"by_name": {VAL_BY_CLASS: named}, "confusion_KK": torch.from_numpy(self._total_KK)}


def _overlap(counts_NC: np.ndarray, weights_NR: np.ndarray) -> dict[str, np.ndarray]:
    """mIoU and pixel accuracy, from the hits, true pixels and answered pixels of each class, C = 3 K columns."""
    sums_CR = counts_NC.T @ weights_NR
    hits_KR, true_KR, answered_KR = sums_CR.reshape(3, -1, weights_NR.shape[1])
    return {
        VAL_MIOU: mean_of_defined(ratio(hits_KR, true_KR + answered_KR - hits_KR)),
        VAL_PIXEL_ACCURACY: ratio(hits_KR.sum(axis=0), true_KR.sum(axis=0)),
    }


def _boundary(values_N: np.ndarray, weights_NR: np.ndarray) -> dict[str, np.ndarray]:
    defined_N = np.isfinite(values_N)
    weighted_R = values_N[defined_N] @ weights_NR[defined_N]
    return {VAL_BOUNDARY_F1: ratio(weighted_R, weights_NR[defined_N].sum(axis=0))}
