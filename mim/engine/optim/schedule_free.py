"""Schedule-free AdamW: an average of the weights takes the place of a rate that falls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mim.engine.optim.base import Optimizer
from mim.engine.optim.steady import steady
from mim.engine.schedule import Schedule
from mim.io.checks import at_least

FALLING = 0.99  # a last rate below this share of the peak is one that falls


class ScheduleFree(Optimizer, name="schedulefree"):
    """Schedule-free AdamW, of the package schedulefree: `pip install 'mim-toolkit[schedulefree]'`.

    Steps move the points z. Their average x is evaluated, and gradients are taken between the two, at
    y = (1 - beta) z + beta x. A checkpoint holds x as it holds a moving average (`ema`), so that evaluations and
    everything that reads a run take x, and y as the weights to go on from, to the bit.

    It wants a rate that stays: `SCHEDULE: {name: wsd, decay_epochs: 0}`, with a warmup. Others are taken and warned of.
    Rates are 1 to 10 times those of AdamW. Running statistics of batch normalisation are those at y. The targets of a
    `follower` follow y. TRAIN.ema must be 0.

    Source: Defazio et al., arXiv:2405.15682, algorithm 1; the package's README (rates, warmup).

    Args:
        betas: share of x in y, above 0 and below 1, and the decay rate of the second moment, at least 0 and below 1.
        eps: added to the denominator of a step.
    """

    moments = 2
    counters = ("k", "weight_sum", "lr_max")
    averages = True
    sharded = False

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, **shared: Any):
        super().__init__(**shared)
        at_least("OPTIMIZER", 0, eps=eps)
        if not (0 < betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(
                f"OPTIMIZER.betas is {list(betas)}: the first must be above 0 and below 1, the second at least 0 and "
                "below 1"
            )
        self.betas, self.eps = betas, eps

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        try:
            import schedulefree
        except ImportError as error:
            raise ValueError(
                f"OPTIMIZER.name schedulefree needs the package schedulefree ({error}): "
                "pip install 'mim-toolkit[schedulefree]', or take another optimizer"
            ) from error
        groups = [{**group, "train_mode": True} for group in groups]
        optimizer: Any = steady(schedulefree.AdamWScheduleFree)
        return optimizer(groups, lr=0.0, betas=self.betas, eps=self.eps)

    @contextmanager
    def averaged(self, optimizer: Any) -> Iterator[None]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        trained = [weight.detach().clone() for weight in weights]
        optimizer.eval()
        yield
        optimizer.train()
        with torch.no_grad():  # back and forth would round
            for weight, value in zip(weights, trained, strict=True):
                weight.copy_(value)
                if not optimizer.state[weight]:  # the package makes an empty one before the first step
                    del optimizer.state[weight]

    def warnings(self, schedule: Schedule) -> list[str]:
        if schedule.warmup >= schedule.steps or schedule.at(schedule.steps - 1) >= FALLING * schedule.peak:
            return []
        return [
            f"SCHEDULE.name {schedule.name}: the rate falls towards the end, and schedulefree wants one that stays; "
            "set SCHEDULE.name wsd SCHEDULE.decay_epochs 0"
        ]
