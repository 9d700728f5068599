"""Features: what the targets share that are made by a network.

Shapes: B batch, C channels, H W pixels, h w entries of a map high and wide, D width.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from mim.encoders.base import Encoder, StagePart
from mim.io.checks import at_least
from mim.structures import EncoderSpec, Features, ImageSpec, TargetSpec
from mim.targets.base import Target

Norm = Literal["none", "layer", "instance"]
EPS = 1e-5  # of all normalisations, as in data2vec's code


class FeatureTarget(Target):
    """Features of a network that sees the whole image, one vector for each token of the student.

    Where the network's grid is another one than the student's, its map is resized (bilinear, antialiased).

    Args:
        network: the encoder that makes the features.
        layers: number of the last blocks whose outputs are averaged, which must have one width and stride. 1 with `of`
            block: the last tokens, after the encoder's last norm; else the outputs as they are.
        of: what a layer is: the output of a `block`, or that of its `mlp` ahead of layer scale and residual connection,
            which vit and beit have. data2vec 2.0: `mlp`.
        layer_norm: normalises each layer before the mean: `layer` over the channels of each token (without weights),
            `instance` over the tokens of an image for each channel.
        norm: the same for the mean.
        tokens: `patch`, or `class`: the class token for every token of the student, with layers 1, layer_norm none and
            no norm of instances.

    Raises ValueError where the network has no such layers or no class token, or a norm would leave nothing.
    """

    outside: ClassVar[bool] = True
    other_network: ClassVar[str] = "ENCODER.name {names}"  # how a user names a network of one of these encoders

    def __init__(
        self,
        image: ImageSpec,
        encoder: EncoderSpec,
        network: Encoder,
        *,
        layers: int = 1,
        of: StagePart = "block",
        layer_norm: Norm = "none",
        norm: Norm = "layer",
        tokens: Literal["patch", "class"] = "patch",
    ):
        super().__init__(image, encoder)
        at_least("TARGET", 1, layers=layers)
        _check(network, layers, of, tokens, self.other_network)
        _check_norms(network, tokens, layer_norm, norm)
        self.options: dict[str, Any] = {}  # of the network's forward
        if layers > 1 or of != "block":
            self.options["stages"] = tuple(range(len(network.spec.stages)))[-layers:]
        if of != "block":
            self.options["of"] = of
        self.layer_norm, self.norm, self.tokens = layer_norm, norm, tokens
        self.spec = TargetSpec(network.spec.width, encoder.stride)

    @abstractmethod
    def features(self, img_BCHW: Tensor, **options: Any) -> Features:
        """The network's features of the student's images. options: further arguments of Encoder.forward."""

    def forward(self, img_BCHW: Tensor) -> Tensor:
        return self.map_of(self.features(img_BCHW, **self.options))

    def map_of(self, features: Features) -> Tensor:
        """The target that is made of the network's features."""
        high, wide = self.encoder.grid
        if self.tokens == "class":
            assert features.prefix_BKD is not None
            class_BD = _wide(features.prefix_BKD[:, 0])
            return _normalise(repeat(class_BD, "b d -> b d h w", h=high, w=wide), self.norm)
        last_BDhw = rearrange(features.tokens_BND, "b (h w) d -> b d h w", h=features.grid[0])
        maps = features.stages_BDhw or (last_BDhw,)
        # where the mean and its norms are taken in the precision of products, small differences would vanish
        mean_BDhw = torch.stack([_normalise(_wide(map_BDhw), self.layer_norm) for map_BDhw in maps]).mean(dim=0)
        if mean_BDhw.shape[-2:] != (high, wide):
            mean_BDhw = F.interpolate(mean_BDhw, (high, wide), mode="bilinear", align_corners=False, antialias=True)
        return _normalise(mean_BDhw, self.norm)


def _check(network: Encoder, layers: int, of: StagePart, tokens: str, other_network: str) -> None:
    """Raises ValueError where the network has no such layers or no class token. other_network: see FeatureTarget."""
    stages, spec = network.spec.stages, network.spec
    alike = [(stage.width, stage.stride) == (spec.width, spec.stride) for stage in stages]
    if layers > 1 and (layers > len(stages) or not all(alike[-layers:])):
        most = max(1, sum(alike))
        raise ValueError(
            f"TARGET.layers is {layers}: of {network.title} at most {most} layers have its last width and stride"
        )
    if of not in network.stage_parts:
        names = " or ".join(name for name, part in Encoder.members().items() if of in part.stage_parts)
        raise ValueError(
            f"TARGET.of {of} reads a network of {names}, and this one is {network.title}: use TARGET.of block, or "
            f"{other_network.format(names=names)}"
        )
    if tokens == "class" and (layers > 1 or of != "block" or not spec.num_prefix):
        raise ValueError(
            "TARGET.tokens class needs TARGET.layers 1, TARGET.of block and a network with a class token; here "
            f"{network.title} has {spec.num_prefix} prefix tokens, and TARGET.layers is {layers} of {of}: use "
            "TARGET.tokens patch"
        )


def _check_norms(network: Encoder, tokens: str, layer_norm: Norm, norm: Norm) -> None:
    """Raises ValueError where a norm would have nothing to do, or leave only zeros."""
    one = math.prod(network.spec.grid) == 1
    for key, value in (("layer_norm", layer_norm), ("norm", norm)):
        if tokens == "class" and (value == "instance" or (key, value) == ("layer_norm", "layer")):
            ways = "none" if key == "layer_norm" else "layer or none"
            raise ValueError(
                f"TARGET.{key} {value} is for tokens of patches, and TARGET.tokens is class: use TARGET.{key} {ways}"
            )
        if value == "instance" and one:
            raise ValueError(
                f"TARGET.{key} instance normalises over the tokens of an image, and {network.title} has one: use "
                f"TARGET.{key} layer or none"
            )


def _wide(features: Tensor) -> Tensor:
    """In fp32 or wider."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _normalise(map_BDhw: Tensor, norm: Norm) -> Tensor:
    """A map with mean 0 and variance 1 over the channels of each entry, or over the entries of each channel."""
    if norm == "layer":
        return F.layer_norm(map_BDhw.movedim(1, -1), [map_BDhw.shape[1]], eps=EPS).movedim(-1, 1)
    return F.instance_norm(map_BDhw, eps=EPS) if norm == "instance" else map_BDhw
