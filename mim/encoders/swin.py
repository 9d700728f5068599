"""Swin: a hierarchical transformer with shifted windows that replaces hidden patches (SimMIM).

Shapes: B batch, C channels, H W pixels, h w patches or tokens high and wide, N tokens, D width.
"""

from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, check_block
from mim.ops.checks import at_least
from mim.ops.positions import resize_bias_table
from mim.structures import Features, ImageSpec, PatchMask


class Swin(Encoder, name="swin"):
    """timm's SwinTransformer, under its own parameter names in `backbone`, with masking composed around it.

    Args:
        patch: side of an embedded patch in pixels; each stage after the first halves the grid and doubles the width.
        width: channels of the first stage; depths and heads: one number a stage.
        window: side of an attention window in tokens. A stage whose grid is no larger than that has one window.
        drop_path: stochastic depth rate of the last block, rising linearly from 0.

    Raises ValueError where the window does not tile a stage's grid, naming stage and axis (timm pads silently).
    Source: SimMIM, models/simmim.py, SwinTransformerForSimMIM (mask token truncated normal, std .02).
    """

    def __init__(
        self,
        image: ImageSpec,
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
                f"ENCODER.depths {list(depths)} and ENCODER.heads {list(heads)} must have one number a stage each"
            )
        at_least("ENCODER", 1, depths=min(depths, default=0), heads=min(heads, default=0), width=width, window=window)
        check_block(width, mlp_ratio, drop_path)
        halvings = 2 ** (len(depths) - 1)
        super().__init__(image, hidden, width=width * halvings, patch=patch, stride=patch * halvings, embed_width=width)
        for stage, count in enumerate(heads):
            if width * 2**stage % count:
                raise ValueError(f"ENCODER.heads {count} does not divide the width {width * 2**stage} of stage {stage}")
        self._check_window(window, stages=len(depths))
        self.backbone = SwinTransformer(
            img_size=(image.height, image.width),
            patch_size=patch,
            in_chans=image.channels,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depths=depths,
            num_heads=heads,
            window_size=window,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
        )
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]  # type: ignore[union-attr]

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """A down-sampling layer shares the layer of the last block before it."""
        stem = [] if self.mask_token is None else [self.mask_token]
        layers = [[*stem, *self.backbone.patch_embed.parameters()]]
        for stage in self.backbone.layers:
            layers[-1] += stage.downsample.parameters()  # type: ignore[union-attr]
            layers += [list(block.parameters()) for block in stage.blocks]  # type: ignore[union-attr]
        return layers

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        return [block.norm2, block.mlp]  # type: ignore[list-item]

    def fit(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if not name.endswith("relative_position_bias_table") or weight.ndim != 2:
            return weight
        attention = self.get_submodule(name.rpartition(".")[0])
        source = None
        if image_size is not None:
            stage = int(name.split(".")[2])  # backbone.layers.<stage>.blocks...
            source = tuple(side // (self.spec.patch * 2**stage) for side in image_size)
        return resize_bias_table(weight, attention.window_size, source)  # type: ignore[arg-type]

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        patches_BhwD = self.backbone.patch_embed(img_BCHW)
        patches_BND = self.replace_hidden(rearrange(patches_BhwD, "b h w d -> b (h w) d"), mask)
        tokens_BhwD = rearrange(patches_BND, "b (h w) d -> b h w d", h=self.patch_grid[0])
        for stage in self.backbone.layers:
            tokens_BhwD = stage(tokens_BhwD)
        tokens_BhwD = self.backbone.norm(tokens_BhwD)
        return Features(rearrange(tokens_BhwD, "b h w d -> b (h w) d"), self.spec.grid)

    def _check_window(self, window: int, stages: int) -> None:
        for stage in range(stages):
            for axis, side in zip(("height", "width"), self.patch_grid, strict=True):
                tokens = side // 2**stage
                if tokens > window and tokens % window:
                    raise ValueError(
                        f"ENCODER.window {window} does not divide the {axis} of stage {stage}, {tokens} tokens: "
                        f"change ENCODER.window or that side of DATA.image_size"
                    )
