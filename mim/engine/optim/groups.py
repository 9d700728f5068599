"""Parameter groups: the trained parameters with one factor on the learning rate and one weight decay each."""

from collections.abc import Callable, Mapping

from torch import nn

from mim.engine.optim.base import Optimizer


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
