"""The optimizer and its parameter groups."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mim.ops.checks import at_least


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """OPTIMIZER.

    name; base_lr: learning rate at a global batch of per_batch, scaled linearly with the batch; betas, eps,
    weight_decay: of AdamW; no_decay: parameters exempt from weight decay beside biases and 1-D ones, each named by
    the end of its dotted name, such as `encoder.mask_token` or `pos_embed`.
    """

    name: Literal["adamw"] = "adamw"
    base_lr: float = 1.5e-4
    per_batch: int = 256
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    no_decay: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least("OPTIMIZER", 1, per_batch=self.per_batch)
        at_least("OPTIMIZER", 0, base_lr=self.base_lr, eps=self.eps, weight_decay=self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"OPTIMIZER.betas is {list(self.betas)}: both must be at least 0 and below 1")


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW, with its fused kernel where the device has one; the schedule sets the learning rate before every step."""
    return torch.optim.AdamW(
        parameter_groups(model, settings),
        lr=0.0,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """The trained parameters in two groups: with weight decay and without.

    Without: biases, 1-D parameters (norms, layer scales), and what `no_decay` names.
    Source: timm, optim_factory.py, add_weight_decay (MAE); SimMIM, optimizer.py, set_weight_decay.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_exempt = parameter.ndim <= 1 or name.endswith(".bias") or _is_named(name, settings.no_decay)
        (exempt if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def unmatched(model: nn.Module, settings: OptimizerSettings) -> list[str]:
    """Entries of `no_decay` that name no trained parameter, and so have no effect."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [end for end in settings.no_decay if not any(_is_named(name, (end,)) for name in names)]


def _is_named(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)
