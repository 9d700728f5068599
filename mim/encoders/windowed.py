"""Windowed: what Swin and Swin V2 share, timm's stages of blocks with shifted windows, with masking around them.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, N tokens, D width,
A attention heads, V windows of an image, T tokens of a window.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, InferredConfig, timm_arguments
from mim.encoders.visible_windows import accept_plans, map_of_visible, visible_stages
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.truncated_normal import redraw_clamped_, trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask, StageSpec

BIAS_TABLE = "relative_position_bias_table"
STD = 0.02  # of the initial weights that timm and this file draw from the truncated normal distribution


class Windowed(Encoder):
    """A transformer of timm's with shifted windows, under timm's parameter names in `backbone`.

    Each stage after the first halves the height and width of the grid and doubles the channels. With `hidden: drop`
    only the visible tokens are computed, and a cell is at least one token of the last stage.
    Source: SimMIM, models/simmim.py (mask token truncated normal, std .02, inserted after the patch embedding's norm);
    GreenMIM, arXiv:2205.13515 (dropping).

    Args:
        backbone: builds the transformer from the arguments of timm's SwinTransformer.
        patch: side of an embedded patch in pixels.
        width: channels of the first stage.
        depths: number of blocks, one number for each stage.
        heads: attention heads of a block, one number for each stage; each must divide the channels of its stage.
        window: side of an attention window in tokens. A stage with a smaller grid has one window.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the channels of its stage.
        drop_path: stochastic depth rate of the last block, in [0, 1); the rate rises linearly from 0.

    Raises ValueError, naming stage and axis, where the window does not tile a stage's grid (timm pads silently).
    """

    can_drop = True
    resizable_keys: ClassVar[tuple[str, ...]] = ("window",)
    stem_weight = "backbone.patch_embed.proj.weight"

    def __init__(
        self,
        image: ImageSpec,
        backbone: Callable[..., SwinTransformer | SwinTransformerV2],
        *,
        hidden: Hidden = "replace",
        patch: int = 4,
        width: int = 128,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        heads: tuple[int, ...] = (4, 8, 16, 32),
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ):
        if len(depths) != len(heads):
            raise ValueError(
                f"ENCODER.depths {list(depths)} and ENCODER.heads {list(heads)} must both have one number a stage"
            )
        at_least("ENCODER", 1, depths=min(depths, default=0), heads=min(heads, default=0), width=width, window=window)
        shared = timm_arguments(image, patch, width, mlp_ratio, drop_path)
        halvings = 2 ** (len(depths) - 1)
        patch_grid = image.grid(patch, "ENCODER.patch")
        image.grid(patch * halvings, "the encoder's stride", "another encoder")
        super().__init__(
            image,
            hidden,
            width=width * halvings,
            patch=patch * halvings if hidden == "drop" else patch,  # cells that patch merging stays inside
            stride=patch * halvings,
            embed_width=width,
            stages=tuple(StageSpec(width * 2**stage, patch * 2**stage) for stage in range(len(depths))),
        )
        for stage, count in enumerate(heads):
            if width * 2**stage % count:
                raise ValueError(f"ENCODER.heads {count} does not divide the width {width * 2**stage} of stage {stage}")
        _check_window(window, patch_grid, stages=len(depths))
        self.backbone = backbone(**shared, depths=depths, num_heads=heads, window_size=window)
        if hidden == "drop":
            accept_plans(self.backbone)
        redraw_clamped_(_drawn_by_timm(self.backbone), STD)
        if self.mask_token is not None:
            trunc_normal_(self.mask_token, STD)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        width, channels, _, patch = state["backbone.patch_embed.proj.weight"].shape
        stages = [f"backbone.layers.{stage}.blocks." for stage in range(depth_of(state, "backbone.layers."))]
        keys = {
            "patch": patch,
            "width": width,
            "depths": tuple(depth_of(state, stage) for stage in stages),
            "heads": tuple(cls.heads_of(state, f"{stage}0.attn") for stage in stages),
            "mlp_ratio": len(state[f"{stages[0]}0.mlp.fc1.weight"]) / width,
        }
        return InferredConfig(keys, channels, unspecified=("window",))

    @staticmethod
    @abstractmethod
    def heads_of(state: Mapping[str, Tensor], attention: str) -> int:
        """The number of heads of the attention layer of that name, from its weights."""

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]  # type: ignore[union-attr]

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """A down-sampling layer belongs to the layer of the last block before it."""
        stem = [] if self.mask_token is None else [self.mask_token]
        layers = [[*stem, *self.backbone.patch_embed.parameters()]]
        for stage in self.backbone.layers:
            layers[-1] += stage.downsample.parameters()  # type: ignore[union-attr]
            layers += [list(block.parameters()) for block in stage.blocks]  # type: ignore[union-attr]
        return layers

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        return [block.norm2, block.mlp]  # type: ignore[list-item]

    def whole_attention(self, block: nn.Module, weights: Tensor) -> Tensor:
        return attention_of_windows(block, weights)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None, stages: Sequence[int] = ()) -> Features:
        if mask is not None and self.hidden == "drop":
            return self._visible(img_BCHW, mask, stages)
        outputs = self._stages(img_BCHW, mask)
        maps = tuple(rearrange(outputs[stage], "b h w d -> b d h w") for stage in stages)
        return Features(rearrange(outputs[-1], "b h w d -> b (h w) d"), self.spec.grid, stages_BDhw=maps)

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        """The output of each stage, (B, D, h, w), by its stride; the last stage's after the last norm."""
        stages = self._stages(img_BCHW, None)
        maps = [rearrange(stage, "b h w d -> b d h w") for stage in stages]
        return {spec.stride: map_BDhw for spec, map_BDhw in zip(self.spec.stages, maps, strict=True)}

    def _visible(self, img_BCHW: Tensor, mask: PatchMask, stages: Sequence[int]) -> Features:
        """Features of the visible tokens, computed without the hidden ones."""
        grid = self.spec.grid
        kept_BN = mask.kept_indices(*grid)
        outputs = list(visible_stages(self.backbone, img_BCHW, kept_BN, grid))
        outputs[-1] = self.backbone.norm(outputs[-1])
        tokens_BND = rearrange(outputs[-1], "b h w d -> b (h w) d")
        maps = tuple(map_of_visible(outputs[stage], kept_BN, grid) for stage in stages)
        return Features(tokens_BND, grid, kept_BN, draw_B=mask.draw_B, stages_BDhw=maps)

    def _stages(self, img_BCHW: Tensor, mask: PatchMask | None) -> list[Tensor]:
        """The tokens (B, h, w, D) after each stage; the last stage's after the last norm."""
        patches_BhwD = self.backbone.patch_embed(img_BCHW)
        patches_BND = self.replace_hidden(rearrange(patches_BhwD, "b h w d -> b (h w) d"), mask)
        tokens_BhwD = rearrange(patches_BND, "b (h w) d -> b h w d", h=patches_BhwD.shape[1])
        stages = []
        for stage in self.backbone.layers:
            tokens_BhwD = stage(tokens_BhwD)
            stages.append(tokens_BhwD)
        return [*stages[:-1], self.backbone.norm(tokens_BhwD)]


def attention_of_windows(block: Any, weights: Tensor) -> Tensor:
    """The attention (B, A, N, N) between all tokens of a block of Swin or Swin V2, from that of windows (B V, A, T, T).

    Raises ValueError where windows do not divide the grid.
    """
    grid, window, shift = block.input_resolution, block.window_size, block.shift_size
    if any(side % step for side, step in zip(grid, window, strict=True)):
        raise ValueError(f"windows of {window} tokens do not divide the grid of {grid}, so timm pads it")
    number_hw = torch.arange(math.prod(grid), device=weights.device).view(*grid)
    shifted_hw = number_hw.roll([-step for step in shift], dims=(0, 1))
    number_VT = rearrange(shifted_hw, "(a p) (b q) -> (a b) (p q)", p=window[0], q=window[1])
    weights_BAVTT = rearrange(weights, "(b v) a t u -> b a v t u", v=len(number_VT))
    whole_BANN = weights.new_zeros(*weights_BAVTT.shape[:2], number_hw.numel(), number_hw.numel())
    whole_BANN[..., number_VT[:, :, None], number_VT[:, None, :]] = weights_BAVTT
    return whole_BANN


def _check_window(window: int, patch_grid: tuple[int, int], stages: int) -> None:
    for stage in range(stages):
        for axis, side in zip(("height", "width"), patch_grid, strict=True):
            tokens = side // 2**stage
            if tokens > window and tokens % window:
                raise ValueError(
                    f"ENCODER.window {window} does not divide the {axis} of stage {stage}, {tokens} tokens: "
                    f"change ENCODER.window or that side of DATA.image_size"
                )


def _drawn_by_timm(backbone: nn.Module) -> list[Tensor]:
    """The weights that timm draws from the truncated normal distribution: of linear layers, and tables of biases."""
    linear = [module.weight for module in backbone.modules() if isinstance(module, nn.Linear)]
    return linear + [table for name, table in backbone.named_parameters() if name.endswith(BIAS_TABLE)]
