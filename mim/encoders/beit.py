"""Beit: a ViT with relative position biases and layer scale that replaces hidden patches (SimMIM's ViT).

Shapes: B batch, C channels, H W pixels, N tokens, D width.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from timm.models.beit import Beit as TimmBeit
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, InferredConfig, square, timm_arguments
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.positions import resize_bias_table
from mim.structures import Features, ImageSpec, PatchMask

PREFIX_ROWS = 3  # of a bias table, its last: class token to patch, patch to class token, class token to itself
SHARED = "backbone.rel_pos_bias.relative_position_bias_table"
FIRST = "backbone.blocks.0."


class Beit(Encoder, name="beit"):
    """timm's Beit, under its own parameter names in `backbone`, with masking composed around it. It has no absolute
    positions.

    Args:
        patch: side of a patch in pixels; width, depth, heads, mlp_ratio: of the transformer.
        bias: one table of relative-position biases `shared` by all blocks (SimMIM's pretraining), or one a `block`
            (its fine-tuning, where a shared table from INIT.checkpoint becomes the first values of each).
        layer_scale: initial value of the factors on each branch, 0 for no layer scale.
        norm: a LayerNorm on the tokens that come out; fine-tuning on their mean puts it behind the mean instead.
        drop_path: stochastic depth rate of the last block, rising linearly from 0.

    Source: SimMIM, models/simmim.py and models/vision_transformer.py (LayerNorm eps 1e-6; all weights truncated normal
    with std .02, in pretraining cut at one std; in block i, from 1, the last layer of each branch over sqrt(2 i)).
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        hidden: Hidden = "replace",
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        bias: Literal["shared", "block"] = "shared",
        layer_scale: float = 0.1,
        norm: bool = True,
        drop_path: float = 0.0,
    ):
        at_least("ENCODER", 1, width=width, depth=depth, heads=heads)
        at_least("ENCODER", 0, layer_scale=layer_scale)
        shared = timm_arguments(image, patch, width, mlp_ratio, drop_path)
        super().__init__(image, hidden, width=width, patch=patch, num_prefix=1)
        if width % heads:
            raise ValueError(f"ENCODER.heads {heads} does not divide ENCODER.width {width}")
        self.backbone = TimmBeit(
            **shared,
            depth=depth,
            num_heads=heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            init_values=layer_scale or None,
            use_abs_pos_emb=False,
            use_rel_pos_bias=bias == "block",
            use_shared_rel_pos_bias=bias == "shared",
        )
        if not norm:
            self.backbone.norm = nn.Identity()
        self._initialise(cut=0.02 if hidden == "replace" else 2.0)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """A table of biases is taken for that of a square image. Raises ValueError where there is none."""
        table_LH = state.get(SHARED, state.get(f"{FIRST}attn.relative_position_bias_table"))
        if table_LH is None:
            raise ValueError("it has no table of relative-position biases: ENCODER.name beit has no other positions")
        width, channels, _, patch = state["backbone.patch_embed.proj.weight"].shape
        distances = square(len(table_LH) - PREFIX_ROWS)  # 2 side - 1
        side = (distances + 1) // 2 if distances % 2 else 0
        scale = state.get(f"{FIRST}gamma_1")
        keys = {
            "patch": patch,
            "width": width,
            "depth": depth_of(state, "backbone.blocks."),
            "heads": table_LH.shape[1],
            "mlp_ratio": len(state[f"{FIRST}mlp.fc1.weight"]) / width,
            "bias": "shared" if SHARED in state else "block",
            "layer_scale": 0.0 if scale is None else 0.1,
            "norm": "backbone.norm.weight" in state,
        }
        return InferredConfig(keys, channels, (side * patch, side * patch) if side else None)

    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.blocks)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The shared bias table is in none of them: it belongs to the top."""
        tokens = [token for token in (self.mask_token, self.backbone.cls_token) if token is not None]
        stem = [*tokens, *self.backbone.patch_embed.parameters()]
        return [stem, *(list(block.parameters()) for block in self.blocks())]

    def above_blocks(self) -> list[nn.Parameter]:
        """Not the shared bias table, which every block reads."""
        return list(self.backbone.norm.parameters())

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        scale = [] if block.gamma_2 is None else [block.gamma_2]
        return [block.norm2, block.mlp, *scale]  # type: ignore[list-item]

    def destinations(self, name: str) -> list[str]:
        if name != SHARED or self.backbone.rel_pos_bias is not None:
            return [name]
        return [f"backbone.blocks.{i}.attn.relative_position_bias_table" for i in range(len(self.backbone.blocks))]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if not name.endswith("relative_position_bias_table") or weight.ndim != 2:
            return weight
        grid = None if image_size is None else (image_size[0] // self.spec.patch, image_size[1] // self.spec.patch)
        patches, prefix = weight[:-PREFIX_ROWS], weight[-PREFIX_ROWS:]
        resized = resize_bias_table(patches, self.spec.grid, grid)
        return weight if resized is patches else torch.cat([resized, prefix])

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        backbone = self.backbone
        tokens_BND = self.replace_hidden(backbone.patch_embed(img_BCHW), mask)
        tokens_BND = torch.cat([backbone.cls_token.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)
        shared = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
        for block in backbone.blocks:
            tokens_BND = block(tokens_BND, shared_rel_pos_bias=shared)
        tokens_BND = backbone.norm(tokens_BND)
        return Features(tokens_BND[:, 1:], self.spec.grid, prefix_BKD=tokens_BND[:, :1])

    def _initialise(self, cut: float) -> None:
        def draw(weight: Tensor) -> None:
            nn.init.trunc_normal_(weight, std=0.02, a=-cut, b=cut)

        for module in self.backbone.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.backbone.cls_token, self.mask_token):
            if token is not None:
                draw(token)
        with torch.no_grad():
            for number, block in enumerate(self.backbone.blocks, 1):
                for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                    layer.weight.div_(math.sqrt(2 * number))  # type: ignore[union-attr, operator]
