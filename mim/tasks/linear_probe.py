"""LinearProbe: one step trains linear layers on the features of a frozen encoder.

Shapes: B batch, K classes, L linear layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.evaluation.accuracy import Counts
from mim.structures import Batch, Place, Report
from mim.tasks.classify import Classify


class LinearProbe(Classify):
    """Linear layers, one for each factor on the learning rate, on one forward pass. See Classify.

    The best of several is chosen by the held-out accuracy that is reported, which flatters it; summary.json has all.
    """

    name = "linear_probe"

    def __init__(self, *shared: Any, rates: tuple[float, ...], **more: Any):
        super().__init__(*shared, **more)
        self.rates = rates

    def rate_factors(self, layer_decay: float) -> dict[str, float]:
        return {
            f"heads.{place}.{name}": rate
            for place, rate in enumerate(self.rates)
            for name, _ in self.model.heads[place].named_parameters()
        }

    def loss(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Cross-entropy, in fp32: the gradient of each layer's own, the value of their mean."""
        scores_LBK = model(self.normalize(self.train_data.model_images(batch))).float()
        losses = [F.cross_entropy(scores_BK, batch.labels_B) for scores_BK in scores_LBK]
        total = torch.stack(losses).sum()
        return total - (total - total / len(losses)).detach()

    def report(self, counts: list[Counts]) -> Report:
        best = max(range(len(counts)), key=lambda place: counts[place].top1)
        if len(counts) == 1:
            return self.report_of(counts[0], {}, "Linear probe")
        each = {f"val/top1_rate_{rate:g}": found.top1 for rate, found in zip(self.rates, counts, strict=True)}
        title = f"Linear probe, learning rate x {self.rates[best]:g}"
        return self.report_of(counts[best], {**each, "val/best_rate": self.rates[best]}, title)
