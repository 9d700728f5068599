"""AdamW, the optimizer of MAE's and SimMIM's pretraining."""

from typing import Any

import torch

from mim.engine.optim.base import Optimizer, check_betas
from mim.io.checks import at_least


class AdamW(Optimizer, name="adamw"):
    """AdamW, with its fused kernel.

    Args:
        betas: decay rates of the two moments, each at least 0 and below 1. Source: Loshchilov and Hutter 2019.
        eps: added to the denominator of a step. Source: Loshchilov and Hutter 2019.
    """

    moments = 2

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, **shared: Any):
        super().__init__(**shared)
        at_least("OPTIMIZER", 0, eps=eps)
        check_betas(betas)
        self.betas, self.eps = betas, eps

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=True)
