"""Stem: the first layer of a backbone of timm, and whether its patches overlap."""

import math
from dataclasses import dataclass
from typing import Any

from timm.models.naflexvit import NaFlexEmbeds
from torch import nn

from mim.encoders.hiding.families import classes

WITH_POSITIONS: tuple[type[Any], ...] = (
    NaFlexEmbeds,
    *classes("gemma4_vit", "Gemma4PatchEmbed"),
)  # they add positions, too
BESIDE_PROJECTION = (nn.Identity, nn.Flatten, nn.Dropout)


@dataclass(frozen=True, slots=True)
class Stem:
    """The first layer of a backbone.

    Args:
        module: the outermost module whose output at a place depends on one patch of the image only; None where patches
            overlap, so that every layer mixes them.
        patch: side of a patch in pixels; 0 where patches overlap.
        width: channels of an embedded patch; 0 where patches overlap.
    """

    module: nn.Module | None
    patch: int = 0
    width: int = 0


def stem_of(backbone: nn.Module) -> Stem:
    """The stem of a backbone, which timm's `first_conv` names."""
    names, first = first_layer(backbone)
    if isinstance(first, nn.Conv2d):
        patch, width = first.kernel_size[0], first.out_channels
        apart = first.kernel_size == first.stride == (patch, patch) and first.dilation == (1, 1)
        if not apart or first.padding not in ((0, 0), "valid"):
            return Stem(None)
    elif isinstance(first, nn.Linear):
        patch, width = math.isqrt(first.in_features // int(backbone.in_chans)), first.out_features  # type: ignore[arg-type]
        if patch**2 * int(backbone.in_chans) != first.in_features:  # type: ignore[arg-type]
            return Stem(None)
    else:
        return Stem(None)
    parent = backbone.get_submodule(names.rpartition(".")[0])
    if isinstance(parent, WITH_POSITIONS):
        return Stem(first, patch, width)
    beside = [child for child in parent.children() if child is not first]
    if parent is backbone or not all(isinstance(each, BESIDE_PROJECTION) or _is_norm(each) for each in beside):
        return Stem(first, patch, width)
    return Stem(parent, patch, width)


def first_layer(backbone: nn.Module) -> tuple[str, Any]:
    """Path and module of the layer that reads the image; empty and None where several do, or timm names none."""
    names = backbone.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    try:
        return (names, backbone.get_submodule(names)) if isinstance(names, str) else ("", None)
    except AttributeError:
        return "", None


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises each place alone."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or type(module).__name__ in ("LayerNorm2d", "RmsNorm2d")
