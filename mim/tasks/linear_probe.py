"""LinearProbe: one step trains linear layers on the features of a frozen encoder.

Shapes: B batch, K classes, L linear layers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.data.batch import Batch
from mim.engine.protocol import Report, StepContext
from mim.evaluation.accuracy import Counts
from mim.metric_keys import VAL_BEST_RATE, at_rate
from mim.tasks.classify import Classify


@dataclass(eq=False, kw_only=True)
class LinearProbe(Classify):
    """Linear layers side by side, each with its own factor on the learning rate. See Classify.

    The layer with the best held-out accuracy is reported, so this accuracy is a little too high; summary.json has all.
    """

    name = "linear_probe"

    rates: tuple[float, ...]  # CLASSIFIER.rates, the factor of each layer

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {
            f"heads.{number}.{name}": rate
            for number, rate in enumerate(self.rates)
            for name, _ in self.model.heads[number].named_parameters()
        }

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """Cross-entropy, in fp32. Its value is the layers' mean; each layer gets the gradient of its own loss."""
        scores_LBK = model(self.preprocess(batch.images_BCHW, batch.crops_B5)).float()
        losses = [F.cross_entropy(scores_BK, batch.labels) for scores_BK in scores_LBK]
        total = torch.stack(losses).sum()
        return total - (total - total / len(losses)).detach()

    def report(self, counts: list[Counts]) -> Report:
        best = max(range(len(counts)), key=lambda number: counts[number].top1)
        if len(counts) == 1:
            return self.report_of(counts[0], {}, "Linear probe")
        each = {at_rate(rate): layer.top1 for rate, layer in zip(self.rates, counts, strict=True)}
        title = f"Linear probe, learning rate x {self.rates[best]:g}"
        return self.report_of(counts[best], {**each, VAL_BEST_RATE: self.rates[best]}, title)
