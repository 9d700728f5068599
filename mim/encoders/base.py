"""Encoder: the base class of the parts that turn an image, partly hidden, into features.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, N tokens, D width of a token.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mim.io.checks import at_least
from mim.registry import Component, one_of
from mim.structures import EncoderSpec, Features, ImageSpec, PatchMask, StageSpec

Hidden = Literal["drop", "replace", "none"]
Hiding = Literal["drop", "replace", "sparse", "none"]
StagePart = Literal["block", "mlp"]  # what a block gives, or its MLP, ahead of the residual connection
STRIDES = (4, 8, 16, 32)
FOR_HIDDEN = ("mask_token", "way.")  # how the names of weights begin that stand for hidden cells


@dataclass(frozen=True, slots=True)
class InferredConfig:
    """The config that the weights of an encoder show; None where they do not show a value.

    Args:
        keys: config keys of the encoder.
        channels: of the images.
        image_size: height and width of the images.
        unspecified: config keys that change what the encoder computes and that its weights do not show.
    """

    keys: dict[str, Any]
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    unspecified: tuple[str, ...] = ()


def square_side(count: int) -> int:
    """The side of a square of `count` cells, or 0 where `count` is not a square number."""
    side = math.isqrt(max(count, 0))
    return side if side**2 == count else 0


def timm_arguments(image: ImageSpec, patch: int, width: int, mlp_ratio: float, drop_path: float) -> dict[str, Any]:
    """The arguments that every backbone of timm takes: no classifier, and the values that all backbones share.

    Raises ValueError where `mlp_ratio` leaves no hidden channel or `drop_path` is not in [0, 1).
    """
    at_least("ENCODER", 1 / width, mlp_ratio=mlp_ratio)
    if not 0 <= drop_path < 1:
        raise ValueError(f"ENCODER.drop_path is {drop_path}: it is a rate, from 0 up to but not including 1")
    return {
        "img_size": (image.height, image.width),
        "patch_size": patch,
        "in_chans": image.channels,
        "num_classes": 0,
        "global_pool": "",
        "embed_dim": width,
        "mlp_ratio": mlp_ratio,
        "drop_path_rate": drop_path,
    }


class Encoder(Component, nn.Module, ABC, section="ENCODER"):
    """A backbone that can leave hidden cells out. Without a mask, every encoder is the plain backbone.

    To write one, subclass with `name="..."`, call `super().__init__` with the arguments below and implement `forward`.
    The constructor sets `image`, `hidden`, `spec`, `patch_grid` and `mask_token` (None unless `hidden` is `replace`).
    The other methods have defaults; layer decay, partial fine-tuning and activation checkpointing use them.
    The class attribute `stage_parts` names what `forward` returns of a stage: with `mlp`, it has the argument `of`.
    Three class attributes say what a run may change that starts from weights of this encoder: `free_keys`, keys with
    which they compute the same; `resizable_keys`, keys for which `resize_weight` makes them fit; and `stem_weight`, the
    name of the weight (D, C, ...) of the first layer, which INIT.adapt_channels adapts.

    Args:
        image: channels, height and width of the images.
        hidden: what happens to hidden patches: `drop` leaves them out, `replace` puts a learned mask token in their
            place, `none` is a plain backbone without mask token. `drop` needs a class with `can_drop = True`.
        width: channels of an output token.
        patch: side of an embedded patch in pixels; the cells of the masker must be a multiple of it.
        stride: pixels of the image side for one output token; `patch` unless the encoder merges patches.
        embed_width: channels of an embedded patch, where the mask token replaces it; `width` unless the encoder widens,
            and 0 for no mask token.
        num_prefix: class token and registers ahead of the patch tokens.
        stages: the maps that `forward` returns by its argument `stages`, the finest first; none where it has no such
            argument.

    Raises ValueError where the encoder cannot drop, or `patch` or `stride` does not divide the image.
    """

    can_drop: ClassVar[bool] = False
    stage_parts: ClassVar[tuple[StagePart, ...]] = ("block",)
    free_keys: ClassVar[tuple[str, ...]] = ("hidden", "drop_path")
    resizable_keys: ClassVar[tuple[str, ...]] = ()
    stem_weight: str = ""

    def __init__(
        self,
        image: ImageSpec,
        hidden: Hiding,
        width: int,
        patch: int,
        stride: int | None = None,
        embed_width: int | None = None,
        num_prefix: int = 0,
        stages: tuple[StageSpec, ...] = (),
    ):
        super().__init__()
        if hidden == "drop" and not self.can_drop:
            droppers = [name for name, part in Encoder.members().items() if part.can_drop]
            raise ValueError(
                f"ENCODER.hidden: drop is not possible with ENCODER.name {self.name}, which needs every token of "
                f"the grid: use ENCODER.hidden replace, or an encoder that can drop ({one_of('', droppers)})"
            )
        self.image, self.hidden = image, hidden
        self.patch_grid = image.grid(patch, "ENCODER.patch")
        stride = stride or patch
        self.spec = EncoderSpec(
            width=width,
            stride=stride,
            patch=patch,
            grid=image.grid(stride, "the encoder's stride", "another encoder"),
            drops_hidden=hidden in ("drop", "sparse"),
            num_prefix=num_prefix,
            stages=stages,
        )
        embed_width = width if embed_width is None else embed_width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_width)) if hidden == "replace" and embed_width else None

    @abstractmethod
    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        """Features of normalised images (B, C, H, W): of all patches, or of what the mask leaves visible."""

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        """The encoder's own feature maps, (B, D, h, w), by stride in pixels; a plain encoder has one."""
        features = self(img_BCHW)
        return {self.spec.stride: rearrange(features.tokens_BND, "b (h w) d -> b d h w", h=features.grid[0])}

    def feature_maps(self, img_BCHW: Tensor, strides: Sequence[int] = STRIDES) -> dict[int, Tensor]:
        """Feature maps for detection and segmentation, (B, D, ceil(H / stride), ceil(W / stride)), by stride in pixels.

        A stride without a stage is resized from the nearest finer stage (bilinear with antialiasing), or enlarged from
        the finest stage (bilinear). No weights are added. D differs by stage.
        """
        stages = self.stage_maps(img_BCHW)
        maps = {}
        for stride in strides:
            map_BDhw = stages[max((finer for finer in stages if finer <= stride), default=min(stages))]
            size = [-(-side // stride) for side in img_BCHW.shape[-2:]]
            if list(map_BDhw.shape[-2:]) != size:
                map_BDhw = F.interpolate(map_BDhw, size=size, mode="bilinear", align_corners=False, antialias=True)
            maps[stride] = map_BDhw
        return maps

    @property
    def title(self) -> str:
        """What reports call the encoder."""
        return self.name

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """The config of an encoder of this class, from its state dict."""
        return InferredConfig({})

    @staticmethod
    def keys_at_another_size(keys: Mapping[str, Any], image_size: Sequence[int]) -> dict[str, Any]:
        """Keys that weights of a model with these keys and images need at another image size or resizable key."""
        return {}

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first block first: the units of activation checkpointing."""
        return []

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem, then of each block. All other parameters belong to the top layer."""
        blocks = [list(block.parameters()) for block in self.blocks()]
        inside = {id(parameter) for block in blocks for parameter in block}
        return [[parameter for parameter in self.parameters() if id(parameter) not in inside], *blocks]

    def layer_ids(self) -> dict[str, int]:
        """The layer of each parameter, by name: the stem is 0, block i is i + 1, all others are `top_layer`.

        Source: MAE, util/lr_decay.py, get_layer_id_for_vit; SimMIM, optimizer.py, get_vit_layer and get_swin_layer.
        """
        layers = self.layer_parameters()
        ids = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer}
        return {name: ids.get(id(parameter), len(layers)) for name, parameter in self.named_parameters()}

    def above_blocks(self) -> list[nn.Parameter]:
        """The parameters after the last block, such as the last norm; partial fine-tuning always trains them."""
        ids, top = self.layer_ids(), self.top_layer
        return [parameter for name, parameter in self.named_parameters() if ids[name] == top]

    @property
    def top_layer(self) -> int:
        """The number of the layer after the last block; a classifier belongs to it."""
        return len(self.layer_parameters())

    def lr_scales(self, decay: float) -> dict[str, float]:
        """Layer decay: the factor on the learning rate of each parameter, by name, is decay ** (top_layer - layer)."""
        top = self.top_layer
        return {name: decay ** (top - layer) for name, layer in self.layer_ids().items()}

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        """The MLP of a block with its norm, which partial fine-tuning trains as half a block; empty where unknown."""
        return []

    def load_published(self) -> list[str]:
        """Loads published weights, where a key of the encoder asks for them; returns lines for the log.

        A run calls it once, when it starts without INIT.checkpoint. Raises ValueError where they cannot be loaded.
        """
        return []

    def behind(self, name: str) -> bool:
        """Whether a weight of a file, by the encoder's names, stands behind the encoder, as a classifier's does."""
        return False

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a file by this encoder's names and sizes, where the code base of its backbone knows them."""
        return state

    def destinations(self, name: str) -> list[str]:
        """The names in this encoder for a weight `name` of an encoder of the same class with other settings."""
        return [name]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """A weight of an encoder for another image size or window, resized for this one.

        Args:
            name: name in this encoder's state dict.
            weight: the other encoder's weight. It is returned as it is where its size does not depend on the image.
            image_size: height and width of the other encoder's images, None where unknown.
        """
        return weight

    def whole_attention(self, block: nn.Module, weights: Tensor) -> Tensor:
        """The attention (B, heads, N, N) between all tokens of a block, from the weights that its softmax gives."""
        return weights

    def replace_hidden(self, patches_BND: Tensor, mask: PatchMask | None) -> Tensor:
        """Embedded patches (B, N, D) with the mask token in place of hidden ones.

        Raises ValueError where this encoder has no mask token.
        """
        if mask is None:
            return patches_BND
        if self.mask_token is None:
            raise ValueError(f"an encoder with hidden: {self.hidden} cannot replace what a mask hides")
        hidden_BN1 = rearrange(mask.at(*self.patch_grid), "b h w -> b (h w) 1")
        return torch.where(hidden_BN1, self.mask_token.to(patches_BND.dtype), patches_BND)
