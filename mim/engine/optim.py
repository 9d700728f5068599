"""Optimizer: the family of parts that turn gradients into steps, and the parameter groups they work on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from mim.io.checks import at_least
from mim.registry import Component


class Optimizer(Component, ABC, section="OPTIMIZER"):
    """The keys that all optimizers share. `prepare` sets learning rate and weight decay of each group before a step.

    Args:
        base_lr: learning rate at a batch of per_batch images; it is scaled linearly with the batch of a step.
        per_batch: images to which base_lr refers. Source: MAE (256); SimMIM (512).
        weight_decay: decay of all weights but biases, 1-D parameters and those that no_decay names.
        weight_decay_end: weight decay at the end of the run, to which it goes by half a cosine over all steps; `none`:
            it does not change. Source: DINO, utils.py, cosine_scheduler, and I-JEPA, which is one step ahead of it
            (both 0.04 to 0.4).
        no_decay: more parameters without weight decay, each named by the end of its dotted name, such as
            `encoder.mask_token` or `pos_embed`.
        layer_decay: factor on the learning rate of an encoder layer for each layer above it, up to the head; 1 for
            none. Source: BEiT; MAE, util/lr_decay.py; SimMIM, optimizer.py.

    Attributes: moments, the numbers that it keeps for each weight.
    """

    moments: ClassVar[int] = 1

    def __init__(
        self,
        *,
        base_lr: float = 1.5e-4,
        per_batch: int = 256,
        weight_decay: float = 0.05,
        weight_decay_end: float | Literal["none"] = "none",
        no_decay: tuple[str, ...] = (),
        layer_decay: float = 1.0,
    ):
        at_least("OPTIMIZER", 1, per_batch=per_batch)
        at_least("OPTIMIZER", 0, base_lr=base_lr, weight_decay=weight_decay)
        if not 0 < layer_decay <= 1:
            raise ValueError(f"OPTIMIZER.layer_decay is {layer_decay}: it must be above 0 and at most 1")
        self.base_lr, self.per_batch, self.layer_decay = base_lr, per_batch, layer_decay
        self.weight_decay, self.no_decay = weight_decay, no_decay
        self.weight_decay_end = weight_decay if weight_decay_end == "none" else weight_decay_end
        at_least("OPTIMIZER", 0, weight_decay_end=self.weight_decay_end)

    @abstractmethod
    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        """The optimizer of what parameter_groups returned. Where `found_inf` is set, its step changes nothing."""

    def weight_decay_at(self, progress: float) -> float:
        """The weight decay of a step. progress: share of the run's steps before it."""
        start, end = self.weight_decay, self.weight_decay_end
        return start if start == end else end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    def prepare(self, groups: list[dict], rate: Callable[[float], float], progress: float) -> None:
        """Sets the learning rate and the weight decay of each group for a step.

        Args:
            groups: those of parameter_groups.
            rate: the learning rate of a group with this lr_scale.
            progress: share of the run's steps before this one.
        """
        weight_decay = self.weight_decay_at(progress)
        for group in groups:
            group["lr"] = rate(group["lr_scale"])
            own = weight_decay if group["own_weight_decay"] is None else group["own_weight_decay"]
            group["weight_decay"] = 0.0 if group["no_weight_decay"] else own


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
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"OPTIMIZER.betas is {list(betas)}: both must be at least 0 and below 1")
        self.betas, self.eps = betas, eps

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=True)


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
        if not 0 <= momentum < 1:
            raise ValueError(f"OPTIMIZER.momentum is {momentum}: it must be at least 0 and below 1")
        if trust <= 0:
            raise ValueError(f"OPTIMIZER.trust is {trust}: it must be positive")
        self.momentum, self.trust = momentum, trust

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        groups = [{**group, "always_adapt": not group["no_weight_decay"]} for group in groups]
        return _SteadyLars(groups, lr=0.0, momentum=self.momentum, trust_coeff=self.trust)


class _SteadyLars(Lars):
    """timm's, but where `found_inf` is set, a step changes neither weights nor momenta. No host sync."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        trained = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
        for parameter in trained:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        values = [*trained, *(self.state[parameter]["momentum_buffer"] for parameter in trained)]
        before = [value.clone() for value in values]
        super().step()
        if self.found_inf is not None:
            for value, old in zip(values, before, strict=True):
                value.copy_(torch.where(self.found_inf > 0, old, value))


def parameter_groups(
    model: nn.Module,
    optimizer: Optimizer,
    lr_scales: Mapping[str, float],
    weight_decays: Mapping[str, float] | None = None,
) -> list[dict]:
    """The trained parameters in groups with one `lr_scale` and weight decay each.

    Biases, 1-D parameters (norms, layer scales) and those that `no_decay` names have none (`no_weight_decay`).

    Args:
        lr_scales: factor on the learning rate by name of the parameter; 1 for all others.
        weight_decays: by name of the parameter; for all others that of the optimizer (`own_weight_decay` None).

    Source: timm, optim_factory.py, add_weight_decay (MAE); MAE, util/lr_decay.py; SimMIM, optimizer.py.
    """
    groups: dict[tuple[float, bool, float | None], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_weight_decay = parameter.ndim <= 1 or name.endswith(".bias") or _is_named(name, optimizer.no_decay)
        own = None if no_weight_decay else (weight_decays or {}).get(name)
        lr_scale = lr_scales.get(name, 1.0)
        decay = 0.0 if no_weight_decay else optimizer.weight_decay if own is None else own
        new = {"weight_decay": decay, "lr_scale": lr_scale, "no_weight_decay": no_weight_decay, "own_weight_decay": own}
        groups.setdefault((lr_scale, no_weight_decay, own), {"params": [], **new})["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (-key[0], key[1], key[2] or 0.0))]


def unmatched(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Entries of `no_decay` that name no trained parameter, and so have no effect."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [end for end in optimizer.no_decay if not any(_is_named(name, (end,)) for name in names)]


def without_effect(model: nn.Module, optimizer: Optimizer, lr_scales: Callable[[float], dict[str, float]]) -> list[str]:
    """Settings that have no effect on the trained parameters of a model, a line each."""
    lines = [f"OPTIMIZER.no_decay {name} names no trained parameter" for name in unmatched(model, optimizer)]
    plain, decayed = lr_scales(1.0), lr_scales(optimizer.layer_decay)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if optimizer.layer_decay < 1 and all(plain.get(name) == decayed.get(name) for name in trained):
        lines.append("OPTIMIZER.layer_decay has no effect: nothing of the encoder is trained")
    return lines


def _is_named(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)
