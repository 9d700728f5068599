"""BackboneSettings: which model of timm, and how it is built."""

from dataclasses import dataclass
from typing import Any

import timm
import yaml
from timm.layers import DropPath
from torch import nn

from mim.registry import one_of
from mim.structures import ImageSpec


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """A model of timm without its classifier.

    Args:
        model: a name of timm.list_models(), with or without the tag of its weights.
        options: further arguments of timm.create_model, each as `key=value`; values are YAML.
        drop_path: stochastic depth rate of the last block, in [0, 1).
    """

    model: str
    options: tuple[str, ...] = ()
    drop_path: float = 0.0

    def build(self, image: ImageSpec, pretrained: bool = False) -> nn.Module:
        """The model, with timm's initial weights or its pretrained ones.

        Raises ValueError for an unknown model, an option that it does not take, and a size that it cannot have.
        """
        self.check()
        chosen = self._options()
        automatic: dict[str, Any] = {"img_size": (image.height, image.width)}
        if self.drop_path:
            automatic["drop_path_rate"] = self.drop_path
        shared: dict[str, Any] = {"pretrained": pretrained, "in_chans": image.channels, "num_classes": 0}
        while True:
            try:
                backbone = timm.create_model(self.model, **shared, **{**automatic, **chosen})
                return backbone if self.drop_path or "drop_path_rate" in chosen else _without_drop_path(backbone)
            except TypeError as error:
                if "img_size" not in chosen and automatic.pop("img_size", None) and "img_size" in str(error):
                    continue  # a convolutional net takes any size
                raise ValueError(f"ENCODER.model {self.model}: {error} (see ENCODER.options and drop_path)") from error
            except (AssertionError, RuntimeError, ValueError, IndexError) as error:
                raise ValueError(f"ENCODER.model {self.model} cannot be built for {image}: {error}") from error

    def check(self) -> None:
        """Raises ValueError where timm has no such model."""
        if not timm.is_model(self.model):
            names = one_of(self.model, timm.list_models())
            raise ValueError(f"ENCODER.model {self.model!r} is no model of timm: {names}")

    def _options(self) -> dict[str, Any]:
        options = {}
        for option in self.options:
            key, equals, value = option.partition("=")
            if not equals or not key.isidentifier():
                raise ValueError(f"ENCODER.options {option!r} is not key=value, such as patch_size=8")
            if key in ("pretrained", "in_chans", "num_classes", "features_only", "checkpoint_path"):
                raise ValueError(f"ENCODER.options {option!r}: {key} follows from other keys, so it cannot be set")
            parsed = yaml.safe_load(value)
            options[key] = tuple(parsed) if isinstance(parsed, list) else parsed
        return options


def _without_drop_path(backbone: nn.Module) -> nn.Module:
    """The model without stochastic depth, which some models of timm have by default."""
    for module in backbone.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return backbone
