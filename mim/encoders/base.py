"""Encoder: the family of parts that turn an image, part of it hidden, into features.

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
from mim.structures import EncoderSpec, Features, ImageSpec, PatchMask

Hidden = Literal["drop", "replace", "none"]
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class InferredConfig:
    """What weights tell of the encoder that they are of: its config keys and its images, None where not told.

    unspecified: keys that change what the encoder computes and leave no trace in its weights.
    """

    keys: dict[str, Any]
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    unspecified: tuple[str, ...] = ()


def square(count: int) -> int:
    """The side of a square of that many; 0 where there is none."""
    side = math.isqrt(max(count, 0))
    return side if side**2 == count else 0


def timm_arguments(image: ImageSpec, patch: int, width: int, mlp_ratio: float, drop_path: float) -> dict[str, Any]:
    """What every backbone of timm's is told: its images and the numbers all have, and that it has no classifier.

    Raises ValueError where a transformer block of these numbers cannot be.
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
    """A backbone that can leave hidden cells out.

    `hidden` says how: `drop` (only visible tokens enter), `replace` (a learned token stands in) or `none` (a plain
    backbone, which then has no mask token). Without a mask every encoder is the plain backbone.

    Args:
        image: what it is built for.
        hidden: see above; an encoder with `can_drop = False` refuses `drop`.
        width: channels of the tokens that come out.
        patch: side of the patch embedding in pixels; hidden cells must be a multiple of it.
        stride: pixels of the image side for one token that comes out; `patch` unless the encoder merges patches.
        embed_width: channels of a patch when it is hidden; `width` unless the encoder widens.
        num_prefix: class token and registers among the tokens.

    Raises ValueError where the patch or the stride does not divide the image, naming the axis.
    """

    can_drop: ClassVar[bool] = False

    def __init__(
        self,
        image: ImageSpec,
        hidden: Hidden,
        width: int,
        patch: int,
        stride: int | None = None,
        embed_width: int | None = None,
        num_prefix: int = 0,
    ):
        super().__init__()
        if hidden == "drop" and not self.can_drop:
            droppers = [name for name, part in Encoder.members().items() if part.can_drop]
            raise ValueError(
                f"ENCODER.hidden: drop is not possible with ENCODER.name {self.name}, whose tokens must fill the whole "
                f"grid: use ENCODER.hidden replace, or an encoder that can drop ({one_of('', droppers)})"
            )
        self.image, self.hidden = image, hidden
        self.patch_grid = image.grid(patch, "ENCODER.patch")
        stride = stride or patch
        self.spec = EncoderSpec(
            width=width,
            stride=stride,
            patch=patch,
            grid=image.grid(stride, "the stride of ENCODER"),
            drops_hidden=hidden == "drop",
            num_prefix=num_prefix,
        )
        self.mask_token = None
        if hidden == "replace":
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_width or width))

    @abstractmethod
    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        """Features of normalised images; without a mask, of all of them."""

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        """The maps that this encoder has by itself, (B, D, h, w) by stride in pixels: of a plain one the last."""
        features = self(img_BCHW)
        return {self.spec.stride: rearrange(features.tokens_BND, "b (h w) d -> b d h w", h=features.grid[0])}

    def feature_maps(self, img_BCHW: Tensor, strides: Sequence[int] = STRIDES) -> dict[int, Tensor]:
        """The maps that detectors and segmenters take, (B, D, ceil(H / stride), ceil(W / stride)) by stride in pixels.

        A stride that the encoder has no stage for is made from the nearest finer stage, averaged down (bilinear with
        antialiasing), or else from its finest one, bilinearly enlarged: no weights are added. Widths differ by stage.
        """
        stages = self.stage_maps(img_BCHW)
        maps = {}
        for stride in strides:
            nearest = max((own for own in stages if own <= stride), default=min(stages))
            size = [-(-side // stride) for side in img_BCHW.shape[-2:]]
            fits = list(stages[nearest].shape[-2:]) == size
            maps[stride] = (
                stages[nearest]
                if fits
                else F.interpolate(stages[nearest], size=size, mode="bilinear", align_corners=False, antialias=True)
            )
        return maps

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """What the weights of an encoder of this kind, under the names of its state dict, tell of its keys."""
        return InferredConfig({})

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks from the image up: the units of activation checkpointing."""
        return []

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters from the image up: of the stem, then of each block. What is in none of them is on top."""
        blocks = [list(block.parameters()) for block in self.blocks()]
        inside = {id(parameter) for block in blocks for parameter in block}
        return [[parameter for parameter in self.parameters() if id(parameter) not in inside], *blocks]

    def layer_ids(self) -> dict[str, int]:
        """The layer of each parameter, by name: the stem is 0, block i is i + 1, what lies above is `top_layer`.

        Source: MAE, util/lr_decay.py, get_layer_id_for_vit; SimMIM, optimizer.py, get_vit_layer and get_swin_layer.
        """
        ids = {id(parameter): number for number, layer in enumerate(self.layer_parameters()) for parameter in layer}
        return {name: ids.get(id(parameter), self.top_layer) for name, parameter in self.named_parameters()}

    def above_blocks(self) -> list[nn.Parameter]:
        """What stands on the last block, such as a last norm, and is trained where only the last blocks are."""
        ids = self.layer_ids()
        return [parameter for name, parameter in self.named_parameters() if ids[name] == self.top_layer]

    @property
    def top_layer(self) -> int:
        """The layer of whatever stands on this encoder."""
        return len(self.layer_parameters())

    def lr_scales(self, decay: float) -> dict[str, float]:
        """Layer decay as a factor on the learning rate of each parameter, by name: decay ** (top_layer - layer)."""
        return {name: decay ** (self.top_layer - layer) for name, layer in self.layer_ids().items()}

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        """The MLP of a block with its norm: what half a block means in partial fine-tuning. Empty: not divisible."""
        return []

    def destinations(self, name: str) -> list[str]:
        """Where a weight of that name, of an encoder of this kind with other settings, belongs in this one."""
        return [name]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """A weight of an encoder built for another image size or window, brought to this one's geometry.

        name: as in this encoder's state dict; image_size: height and width that the other was built for, None where
        that is not known. What has no geometry, or the same one, is returned as it is.
        """
        return weight

    def replace_hidden(self, patches_BND: Tensor, mask: PatchMask | None) -> Tensor:
        """Puts the mask token in place of hidden patches. Raises ValueError where this encoder has none."""
        if mask is None:
            return patches_BND
        if self.mask_token is None:
            raise ValueError(f"an encoder with hidden: {self.hidden} cannot replace what a mask hides")
        hidden_BN1 = rearrange(mask.at(*self.patch_grid), "b h w -> b (h w) 1")
        return torch.where(hidden_BN1, self.mask_token.to(patches_BND.dtype), patches_BND)
