"""LinearProbe: one step trains linear layers on the features of a frozen encoder.

Shapes: B batch, K classes, L linear layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.data.batch import Batch
from mim.engine.protocol import Report, StepContext
from mim.evaluation.accuracy import Counts
from mim.metric_keys import VAL_BEST_RATE, at_rate
from mim.tasks.classify import Classify


class LinearProbe(Classify):
    """Linear layers, one for each lr_scale on the learning rate, on one forward pass. See Classify.

    The best of several is chosen by the held-out accuracy that is reported, which flatters it; summary.json has all.
    """

    name = "linear_probe"

    def __init__(self, *shared: Any, rates: tuple[float, ...], **more: Any):
        super().__init__(*shared, **more)
        self.rates = rates

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {
            f"heads.{place}.{name}": rate
            for place, rate in enumerate(self.rates)
            for name, _ in self.model.heads[place].named_parameters()
        }

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """Cross-entropy, in fp32: the gradient of each layer's own, the value of their mean."""
        scores_LBK = model(self.normalize(self.train_data.model_images(batch))).float()
        losses = [F.cross_entropy(scores_BK, batch.labels_B) for scores_BK in scores_LBK]
        total = torch.stack(losses).sum()
        return total - (total - total / len(losses)).detach()

    def report(self, counts: list[Counts]) -> Report:
        best = max(range(len(counts)), key=lambda place: counts[place].top1)
        if len(counts) == 1:
            return self.report_of(counts[0], {}, "Linear probe")
        each = {at_rate(rate): found.top1 for rate, found in zip(self.rates, counts, strict=True)}
        title = f"Linear probe, learning rate x {self.rates[best]:g}"
        return self.report_of(counts[best], {**each, VAL_BEST_RATE: self.rates[best]}, title)
