"""LARS, the optimizer of MAE's linear probe."""

from typing import Any

import torch
from timm.optim.lars import Lars

from mim.engine.optim.base import Optimizer, check_momentum
from mim.engine.optim.steady import Steady


class LARS(Optimizer, name="lars"):
    """LARS: each weight's gradient is scaled to `trust` times the weight's norm, then steps with momentum.

    Parameters without weight decay (biases, 1-D parameters) take plain steps of SGD with momentum.

    Args:
        momentum: factor on the previous step, at least 0 and below 1.
        trust: size of a step relative to the weight's norm, above 0.

    Source: MAE, util/lars.py; the steps are timm's, which adapts without weight decay only under `always_adapt`.
    Differs from: with weight decay the norms are as You et al. 2017 have them, |g| + decay |w|, not |g + decay w|.
    """

    def __init__(self, *, momentum: float = 0.9, trust: float = 0.001, **shared: Any):
        super().__init__(**shared)
        check_momentum(momentum)
        if trust <= 0:
            raise ValueError(f"OPTIMIZER.trust is {trust}: it must be positive")
        self.momentum, self.trust = momentum, trust

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        groups = [{**group, "always_adapt": not group["no_weight_decay"]} for group in groups]
        return _SteadyLars(groups, lr=0.0, momentum=self.momentum, trust_coeff=self.trust)


class _SteadyLars(Steady, Lars):
    """timm's, but where `found_inf` is set, a step changes neither weights nor momenta."""
