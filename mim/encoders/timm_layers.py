"""The layers of a backbone of timm in order of depth, and the module that is most of each."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

CLASSIFIER = "/"  # stands for the classifier, which is left out: a name that matches no layer, as the classifier's


def layers_of(backbone: Any, unused: Collection[str]) -> list[list[str]]:
    """The names of the parameters of each layer, stem first, from timm's group_matcher.

    Those that it puts with the classifier, such as a last norm, and those in `unused` are in no layer.
    """
    names = [name for name, _ in backbone.named_parameters() if name not in unused]
    by_stage = not hasattr(backbone, "group_matcher")
    matcher = _stage_number(backbone, names) if by_stage else backbone.group_matcher(coarse=False)
    groups = group_with_matcher(((name, None) for name in [*names, CLASSIFIER]), matcher)
    return [groups[number] for number in sorted(groups) if CLASSIFIER not in groups[number]]


def module_of(backbone: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The largest module with none but parameters of one layer; None where only parameters stand alone."""
    sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters() if name in names}
    best, largest = None, 0
    for path, module in backbone.named_modules():
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        size = sum(sizes.get(name, 0) for name in inside)
        if size > largest and inside <= set(names) and not isinstance(module, nn.ModuleList):
            best, largest = module, size  # of nested ones of one size the outermost
    return best


def _stage_number(backbone: Any, names: Sequence[str]) -> Callable[[str], float]:
    """A matcher by which each module of timm's feature_info is a layer, for backbones without group_matcher."""
    stages = [f"{info['module']}." for info in backbone.feature_info]
    numbers = {name: next((i for i, stage in enumerate(stages, 1) if name.startswith(stage)), 0) for name in names}
    last = max(place for place, name in enumerate(names) if numbers[name])
    inside = {name: numbers[name] for name in names[: last + 1]}
    return lambda name: inside.get(name, float("inf"))
