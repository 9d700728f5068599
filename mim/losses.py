"""Loss: elementwise losses, averaged over hidden (and predicted) cells.

Shapes: B batch, C channels of the target, H W entries of the target.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.registry import Component
from mim.structures import PatchMask, Prediction


class Loss(Component, nn.Module, ABC, section="LOSS"):
    """A mean over cells, in fp32 or wider: the sum divided by the number of cells + `eps`.

    Args:
        over: `hidden` cells, or `all` of them (the ablations of both papers).
        eps: added to the number of cells. 0; SimMIM's code has 1e-5.

    Source: MAE, models_mae.py, forward_loss; SimMIM, models/simmim.py, forward.
    """

    def __init__(self, *, over: Literal["hidden", "all"] = "hidden", eps: float = 0.0):
        super().__init__()
        self.over, self.eps = over, eps

    @abstractmethod
    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The loss of each value, (B, C, H, W)."""

    def forward(self, prediction: Prediction, target_BCHW: Tensor, mask: PatchMask) -> Tensor:
        """The scalar loss."""
        height, width = target_BCHW.shape[-2:]
        wide = torch.promote_types(target_BCHW.dtype, torch.float32)
        error_BHW = self.elementwise(prediction.map_BCHW.to(wide), target_BCHW.to(wide)).mean(dim=1)
        counted_BHW = mask.at(height, width) if self.over == "hidden" else torch.ones_like(error_BHW)
        if prediction.predicted_BHW is not None:
            counted_BHW = counted_BHW * PatchMask(prediction.predicted_BHW).at(height, width)
        counted_BHW = counted_BHW.to(wide)
        return (error_BHW * counted_BHW).sum() / (counted_BHW.sum() + self.eps)


class MSE(Loss, name="mse"):
    """Squared error (MAE)."""

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return (prediction_BCHW - target_BCHW) ** 2


class L1(Loss, name="l1"):
    """Absolute error (SimMIM)."""

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return (prediction_BCHW - target_BCHW).abs()


class SmoothL1(Loss, name="smooth_l1"):
    """Squared below `beta`, absolute above (SimMIM's ablation of targets)."""

    def __init__(self, *, beta: float = 1.0, **keys: Any):
        super().__init__(**keys)
        if beta <= 0:
            raise ValueError(f"LOSS.beta is {beta}: it must be positive")
        self.beta = beta

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction_BCHW, target_BCHW, beta=self.beta, reduction="none")
