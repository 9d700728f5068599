"""Layout: what a backbone of timm returns for images of one size, measured without weights.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, N tokens, K prefix tokens, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from einops import parse_shape, rearrange
from timm.layers import PatchEmbed
from timm.models.hiera import Hiera
from torch import Tensor

from mim.encoders.hiding.backbone import BackboneSettings
from mim.encoders.hiding.families import classes
from mim.structures import Features, ImageSpec, StageSpec

GEMMA = classes("gemma4_vit", "Gemma4VitEncoder", "Gemma4VitClassifier")
Order = Literal["tokens", "BDhw", "BhwD", "stage"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a backbone returns for images of one size.

    Args:
        stages: of timm's forward_intermediates, the finest first.
        width, stride, grid: of the last map, from which a head predicts.
        order: of the output of forward_features: tokens (B, K + N, D), a map in either layout, or none of these
            (`stage`), where the last stage is taken in its place.
        num_prefix: tokens ahead of the patch tokens in the output, class token and registers.
        has_class: whether the first of these is a class token.
        unused: names of parameters that forward_features does not read, such as those of a classifier's norm.
    """

    stages: tuple[StageSpec, ...]
    width: int
    stride: int
    grid: tuple[int, int]
    order: Order
    num_prefix: int
    has_class: bool
    unused: frozenset[str] = field(repr=False, default=frozenset())

    def features(self, output: Any, kept_BN: Tensor | None = None, draw_B: Tensor | None = None) -> Features:
        """The output of forward_features, of all tokens or of the kept ones, or else the last stage, as features."""
        if self.order in ("BDhw", "stage"):
            tokens_BND = rearrange(output, "b d h w -> b (h w) d")
        elif self.order == "BhwD":
            tokens_BND = rearrange(output, "b h w d -> b (h w) d")
        else:
            tokens_BND = output
        prefix_BKD = tokens_BND[:, : self.num_prefix] if self.has_class else None
        return Features(tokens_BND[:, self.num_prefix :], self.grid, kept_BN, prefix_BKD, draw_B)


@lru_cache(maxsize=64)
@torch.enable_grad()
def measure(settings: BackboneSettings, image: ImageSpec) -> Layout:
    """The layout of a backbone for images of one size, from a forward and a backward pass on the meta device.

    Raises ValueError where the backbone does not take such images, and where its last map is no grid of the image.
    """
    with torch.device("meta"):
        backbone: Any = settings.build(image).eval()
        _check_patches(backbone, image)
        img_BCHW = torch.empty(2, image.channels, image.height, image.width)
    try:
        output = backbone.forward_features(img_BCHW)
        maps = _maps(backbone, img_BCHW)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        stride = max((info["reduction"] for info in backbone.feature_info), default=1)
        image.grid(stride, "the encoder's stride", "another encoder")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ENCODER.model {settings.model} does not take images of {image}: {reason}") from error
    stages = tuple(StageSpec(each.shape[1], _stride(settings, image, tuple(each.shape[2:]))) for each in maps)
    _check_maps(backbone, image, stages)
    order: Order = "stage"
    prefix, width, grid = 0, stages[-1].width, tuple(maps[-1].shape[-2:])
    if isinstance(output, Tensor) and output.ndim == 4:
        order = "BDhw" if output.shape[1] == backbone.num_features else "BhwD"
        axes = "b d h w" if order == "BDhw" else "b h w d"
        shape = parse_shape(output, axes)
        width, grid = shape["d"], (shape["h"], shape["w"])
    elif (
        isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] >= math.prod(grid) and _row_major(backbone)
    ):
        order, prefix, width = "tokens", output.shape[1] - math.prod(grid), output.shape[2]
    (maps[-1] if order == "stage" else output).float().sum().backward()
    return Layout(
        stages=stages,
        width=width,
        stride=_stride(settings, image, grid),
        grid=grid,
        order=order,
        num_prefix=prefix,
        has_class=prefix > 0 and any(name.endswith("cls_token") for name, _ in backbone.named_parameters()),
        unused=frozenset(name for name, parameter in backbone.named_parameters() if parameter.grad is None),
    )


def _check_patches(backbone: Any, image: ImageSpec) -> None:
    """Raises ValueError where patches leave a rest at the right or at the bottom, which timm would not look at."""
    embed = getattr(backbone, "patch_embed", None)
    if (
        isinstance(embed, PatchEmbed)
        and not getattr(embed, "dynamic_img_pad", False)
        and len(set(embed.patch_size)) == 1
    ):
        image.grid(embed.patch_size[0], "the encoder's patch", "another encoder")


def _check_maps(backbone: Any, image: ImageSpec, stages: Sequence[StageSpec]) -> None:
    """Raises ValueError where a layer halves a map of odd size and leaves its last row and column out."""
    nominal = max((info["reduction"] for info in backbone.feature_info), default=stages[-1].stride)
    if stages[-1].stride > nominal:
        image.grid(nominal, "the encoder's stride", "another encoder")


def _maps(backbone: Any, img_BCHW: Tensor) -> Any:
    """timm's maps (B, D, h, w). That of Gemma 4 looks at values for their grid, which the meta device has not."""
    if not isinstance(backbone, GEMMA):
        return backbone.forward_intermediates(img_BCHW, intermediates_only=True)
    high = img_BCHW.shape[2] // backbone.get_patch_size()[0]
    outputs: Any = backbone.forward_intermediates(img_BCHW, output_fmt="NLC", intermediates_only=True)
    return [rearrange(output, "b (h w) d -> b d h w", h=high) for output in outputs]


def _row_major(backbone: Any) -> bool:
    """Whether tokens come out row by row: those of Hiera do not where it pools less often than it takes units apart."""
    return not isinstance(backbone, Hiera) or backbone.q_pool == len(backbone.stage_ends) - 1


def _stride(settings: BackboneSettings, image: ImageSpec, grid: tuple[int, int]) -> int:
    """Pixels of the image side for one entry of a map. Raises ValueError where they differ or are no whole number."""
    high, wide = grid
    stride = image.height // high
    if (high * stride, wide * stride) != (image.height, image.width):
        raise ValueError(
            f"ENCODER.model {settings.model} makes a map of {high}x{wide} of images of {image.height}x{image.width}, "
            "which is no grid of whole pixels: use an image size that its strides divide"
        )
    return stride
