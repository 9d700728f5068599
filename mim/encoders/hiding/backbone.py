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
        return self._create(image, pretrained)[0]

    def taken(self, image: ImageSpec) -> dict[str, Any]:
        """The arguments with which timm.create_model makes the model for such images."""
        return self._create(image, pretrained=False)[1]

    def _create(self, image: ImageSpec, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
        """The model and what it took: a convolutional net takes no `img_size`, as it fits any."""
        self.check()
        options = self._options()
        rate = self._rate(options)
        arguments = {
            "in_chans": image.channels,
            "num_classes": 0,
            "img_size": (image.height, image.width),
            **rate,
            **options,
        }
        while True:
            try:
                backbone: Any = timm.create_model(self.model, pretrained=pretrained, **arguments)
                backbone.in_chans = image.channels  # older timm does not say it
                return backbone if arguments.get("drop_path_rate") else _without_drop_path(backbone), arguments
            except TypeError as error:
                if "img_size" in arguments and "img_size" not in options and "img_size" in str(error):
                    del arguments["img_size"]
                    continue
                raise ValueError(f"ENCODER.model {self.model}: {error} (see ENCODER.options and drop_path)") from error
            except OSError as error:
                reason = str(error) or type(error).__name__
                raise ValueError(
                    f"ENCODER.pretrained: timm cannot load its weights of {self.model} ({reason}): connect, or name a "
                    "file of weights by INIT.checkpoint"
                ) from error
            except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, ValueError) as error:
                reason = f"{type(error).__name__} {error}".strip()
                raise ValueError(
                    f"ENCODER.model {self.model} cannot be built for {image} and ENCODER.options "
                    f"{list(self.options)}: {reason}"
                ) from error

    def check(self) -> None:
        """Raises ValueError where timm has no such model."""
        if not timm.is_model(self.model):
            names = one_of(self.model, timm.list_models())
            hub = "name its architecture, and its file by INIT.checkpoint. " if ":" in self.model else ""
            raise ValueError(f"ENCODER.model {self.model!r} is no model of timm: {hub}{names}")

    def _options(self) -> dict[str, Any]:
        options = {}
        for option in self.options:
            key, equals, value = option.partition("=")
            if not equals or not key.isidentifier():
                raise ValueError(f"ENCODER.options {option!r} is not key=value, such as patch_size=8")
            if key in ("pretrained", "in_chans", "num_classes", "features_only", "checkpoint_path"):
                raise ValueError(f"ENCODER.options {option!r}: {key} follows from other keys, so it cannot be set")
            if key in options:
                raise ValueError(f"ENCODER.options {list(self.options)} names {key} twice")
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(f"ENCODER.options {option!r}: {value!r} is no YAML value") from error
            options[key] = tuple(parsed) if isinstance(parsed, list) else parsed
        return options

    def _rate(self, options: dict[str, Any]) -> dict[str, float]:
        """The stochastic depth rate as timm's argument; none where it is 0, as not every model takes it."""
        if self.drop_path and "drop_path_rate" in options:
            raise ValueError(f"ENCODER.drop_path is {self.drop_path}, and ENCODER.options has drop_path_rate: use one")
        rate = options.get("drop_path_rate") or self.drop_path
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"ENCODER.drop_path is {rate}: it is a rate, from 0 up to but not including 1")
        return {"drop_path_rate": rate} if rate else {}


def _without_drop_path(backbone: nn.Module) -> nn.Module:
    """The model without stochastic depth, which some models of timm have by default."""
    for module in backbone.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return backbone
