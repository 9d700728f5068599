"""Windowed: what Swin and Swin V2 share, timm's stages of blocks with shifted windows, with masking around them.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, N tokens, D width,
A attention heads, V windows of an image, T tokens of a window.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, InferredConfig, timm_arguments
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.truncated_normal import redraw_clamped_, trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask

BIAS_TABLE = "relative_position_bias_table"
STD = 0.02  # of the initial weights that timm and this file draw from the truncated normal distribution


class Windowed(Encoder):
    """A transformer of timm's with shifted windows, under timm's parameter names in `backbone`.

    Each stage after the first halves the height and width of the grid and doubles the channels.
    Source: SimMIM, models/simmim.py (mask token truncated normal, std .02, inserted after the patch embedding's norm).

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
        super().__init__(image, hidden, width=width * halvings, patch=patch, stride=patch * halvings, embed_width=width)
        for stage, count in enumerate(heads):
            if width * 2**stage % count:
                raise ValueError(f"ENCODER.heads {count} does not divide the width {width * 2**stage} of stage {stage}")
        self._check_window(window, stages=len(depths))
        self.backbone = backbone(**shared, depths=depths, num_heads=heads, window_size=window)
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
        """From weights of shape (B V, A, T, T)."""
        grid, window, shift = block.input_resolution, block.window_size, block.shift_size
        number_hw = torch.arange(math.prod(grid), device=weights.device).view(*grid)  # type: ignore[arg-type, misc]
        shifted_hw = number_hw.roll([-step for step in shift], dims=(0, 1))  # type: ignore[union-attr]
        number_VT = rearrange(shifted_hw, "(a p) (b q) -> (a b) (p q)", p=window[0], q=window[1])  # type: ignore[index]
        weights_BAVTT = rearrange(weights, "(b v) a t u -> b a v t u", v=len(number_VT))
        whole_BANN = weights.new_zeros(*weights_BAVTT.shape[:2], number_hw.numel(), number_hw.numel())
        whole_BANN[..., number_VT[:, :, None], number_VT[:, None, :]] = weights_BAVTT
        return whole_BANN

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        tokens_BhwD = self._stages(img_BCHW, mask)[-1]
        return Features(rearrange(tokens_BhwD, "b h w d -> b (h w) d"), self.spec.grid)

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        """The output of each stage, (B, D, h, w), by its stride; the last stage's after the last norm."""
        stages = self._stages(img_BCHW, None)
        return {self.spec.patch * 2**i: rearrange(stage, "b h w d -> b d h w") for i, stage in enumerate(stages)}

    def _stages(self, img_BCHW: Tensor, mask: PatchMask | None) -> list[Tensor]:
        """The tokens (B, h, w, D) after each stage; the last stage's after the last norm."""
        patches_BhwD = self.backbone.patch_embed(img_BCHW)
        patches_BND = self.replace_hidden(rearrange(patches_BhwD, "b h w d -> b (h w) d"), mask)
        tokens_BhwD = rearrange(patches_BND, "b (h w) d -> b h w d", h=self.patch_grid[0])
        stages = []
        for stage in self.backbone.layers:
            tokens_BhwD = stage(tokens_BhwD)
            stages.append(tokens_BhwD)
        return [*stages[:-1], self.backbone.norm(tokens_BhwD)]

    def _check_window(self, window: int, stages: int) -> None:
        for stage in range(stages):
            for axis, side in zip(("height", "width"), self.patch_grid, strict=True):
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
