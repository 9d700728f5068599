"""The optimizers of timm, by their names."""

from collections.abc import Callable
from typing import Any, Literal

import timm
import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

from mim.engine.optim.base import Optimizer, check_betas, check_momentum
from mim.engine.optim.steady import steady
from mim.io.checks import at_least
from mim.registry import one_of


class TimmOptimizer(Optimizer, name="timm"):
    """An optimizer of timm by its name. Its steps, its defaults and what weight decay means are timm's.

    `OPTIMIZER: {name: timm, optimizer: nadamuon}`. Rates and weight decays are of the optimizer's own scale: `lion`
    takes about a tenth of AdamW's rate, `sgd` a hundred times. Biases, norms and what `no_decay` names take the step of
    AdamW where timm's has one beside its own (muon, nmuon, adamuon, nadamuon).

    Source: timm.optim; its documentation is huggingface.co/docs/timm/reference/optimizers.

    Args:
        optimizer: name of timm: `python -c "import timm.optim; print(timm.optim.list_optimizers())"` prints them. Not
            those of other packages (bnb..., fused...), nor those that need second derivatives (adahessian), a peak rate
            that timm takes from its own schedules (names of corrected weight decay, such as adamc), random numbers that
            no checkpoint holds (kron), or values that none can hold (adafactorbv).
        momentum: factor on the previous step; `default`: 0.9, as in timm's create_optimizer_v2.
        betas: decay rates of the moments, as many as the optimizer has; `default`: timm's.
        eps: added to denominators; `default`: timm's.
    """

    moments = 2
    counters = ("step",)  # of adan
    sharded = False

    def __init__(
        self,
        *,
        optimizer: str = "nadamw",
        momentum: float | Literal["default"] = "default",
        betas: tuple[float, ...] | Literal["default"] = "default",
        eps: float | Literal["default"] = "default",
        **shared: Any,
    ):
        super().__init__(**shared)
        info = _info(optimizer)
        if momentum != "default":
            check_momentum(momentum)
        if betas != "default":
            check_betas(betas)
        if eps != "default":
            at_least("OPTIMIZER", 0, eps=eps)
        self.optimizer: Any = get_optimizer_class(info.name, bind_defaults=False)
        self.keys = dict(info.defaults or {})
        if info.has_momentum:
            self.keys.setdefault("momentum", 0.9)
        takes = {"momentum": info.has_momentum, "betas": info.has_betas, "eps": info.has_eps}
        for key, value in {"momentum": momentum, "betas": betas, "eps": eps}.items():
            if value == "default":
                continue
            if not takes[key]:
                raise ValueError(f"OPTIMIZER.{key} is {value}, and {info.name} of timm has no {key}: leave it out")
            self.keys[key] = value
        if betas != "default" and len(betas) != info.num_betas:
            raise ValueError(f"OPTIMIZER.betas is {list(betas)}: {info.name} of timm has {info.num_betas} of them")

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        groups = [{**group, "use_fallback": group["no_weight_decay"]} for group in groups]
        # prepare sets the rate before each step; with a rate of 0, adafactor would take one of its own
        optimizer: Any = steady(self.optimizer)
        return optimizer(groups, lr=1.0, **self.keys)

    def prepare(self, groups: list[dict], rate: Callable[[float], float], progress: float) -> None:
        super().prepare(groups, rate, progress)
        for group in groups:
            if "adamw_lr" in group:  # of Muon's AdamW in timm before 1.0.24, which would stay as it was built
                group["adamw_lr"] = group["lr"]


def _info(name: str) -> Any:
    """What timm knows of an optimizer. Raises ValueError where there is none, or none that a run can have."""
    infos = {str(each): get_optimizer_info(str(each)) for each in list_optimizers()}
    if name not in infos:
        usable = [each for each, info in infos.items() if not _refusal(info)]
        raise ValueError(f"OPTIMIZER.optimizer {name!r} is unknown to timm {timm.__version__}: {one_of(name, usable)}")
    if reason := _refusal(infos[name]):
        raise ValueError(f"OPTIMIZER.optimizer is {name}: {reason}")
    return infos[name]


def _refusal(info: Any) -> str:
    """Why no run can have an optimizer; empty where one can."""
    if isinstance(info.opt_class, str):
        return f"it is not timm's but {info.opt_class}, of another package: take the one of timm without that prefix"
    if info.second_order:
        return "it needs second derivatives, and no step here computes them: take another"
    if (info.defaults or {}).get("corrected_weight_decay"):
        return "its weight decay needs the peak of timm's own schedules: take one without corrected weight decay"
    if info.opt_class.__name__ == "AdafactorBigVision":
        return "checkpoints cannot hold its state: take adafactor"
    if info.opt_class.__name__ == "Kron":
        return "it draws random numbers that no checkpoint holds, so that no run could be resumed: take another"
    return ""
