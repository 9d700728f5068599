"""Beit: a ViT with relative position biases and layer scale that replaces hidden patches (SimMIM's ViT).

Shapes: B batch, C channels, H W pixels, N tokens, D width, L rows of a bias table, H heads.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from timm.models.beit import Beit as TimmBeit
from torch import Tensor, nn

from mim.encoders.base import InferredConfig, StagePart, square_side
from mim.encoders.plain import Plain
from mim.io.checks import at_least
from mim.ops.positions import resize_bias_table
from mim.ops.truncated_normal import trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask

PREFIX_ROWS = 3  # the last rows of a bias table: class token to patch, patch to class token, class token to itself
SHARED_TABLE = "backbone.rel_pos_bias.relative_position_bias_table"
FIRST_BLOCK = "backbone.blocks.0."


class Beit(Plain, name="beit"):
    """timm's Beit, which replaces hidden patches. It has no absolute positions.

    Source: SimMIM, models/simmim.py and models/vision_transformer.py (all weights truncated normal
    with std .02, in pretraining cut at one std; in block i, from 1, the last layer of each branch over sqrt(2 i)).

    Args:
        bias: `shared`, one table of relative-position biases for all blocks (SimMIM's pretraining), or `block`, one
            for each block (its fine-tuning; a shared table from INIT.checkpoint initialises each of them).
        layer_scale: initial value of the factors on each branch, at least 0; 0 means no layer scale.
    """

    free_keys: ClassVar[tuple[str, ...]] = (*Plain.free_keys, "bias", "layer_scale")
    backbone: TimmBeit

    def __init__(
        self, image: ImageSpec, *, bias: Literal["shared", "block"] = "shared", layer_scale: float = 0.1, **shared: Any
    ):
        at_least("ENCODER", 0, layer_scale=layer_scale)
        backbone = partial(
            TimmBeit,
            init_values=layer_scale or None,
            use_abs_pos_emb=False,
            use_rel_pos_bias=bias == "block",
            use_shared_rel_pos_bias=bias == "shared",
        )
        super().__init__(image, backbone, 1, **shared)
        self._initialise(cut=0.02 if self.hidden == "replace" else 2.0)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """The image size is that of square images, where the bias table fits one.

        Raises ValueError where there is no bias table.
        """
        table_LH = state.get(SHARED_TABLE, state.get(f"{FIRST_BLOCK}attn.relative_position_bias_table"))
        if table_LH is None:
            raise ValueError("it has no table of relative-position biases, which ENCODER.name beit needs")
        config = super().infer_config(state)
        distances = square_side(len(table_LH) - PREFIX_ROWS)  # 2 side - 1
        side = (distances + 1) // 2 * config.keys["patch"] if distances % 2 else 0
        keys = {
            **config.keys,
            "heads": table_LH.shape[1],
            "bias": "shared" if SHARED_TABLE in state else "block",
            "layer_scale": 0.1 if f"{FIRST_BLOCK}gamma_1" in state else 0.0,
        }
        return InferredConfig(keys, config.channels, (side, side) if side else None)

    def above_blocks(self) -> list[nn.Parameter]:
        """Without the shared bias table, which every block reads."""
        return list(self.backbone.norm.parameters())

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        return super().upper_half(block) + ([] if block.gamma_2 is None else [block.gamma_2])  # type: ignore[list-item]

    def destinations(self, name: str) -> list[str]:
        if name != SHARED_TABLE or self.backbone.rel_pos_bias is not None:
            return [name]
        return [f"backbone.blocks.{i}.attn.relative_position_bias_table" for i in range(len(self.backbone.blocks))]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if not name.endswith("relative_position_bias_table") or weight.ndim != 2:
            return weight
        grid = None if image_size is None else (image_size[0] // self.spec.patch, image_size[1] // self.spec.patch)
        patches, prefix = weight[:-PREFIX_ROWS], weight[-PREFIX_ROWS:]
        resized = resize_bias_table(patches, self.spec.grid, grid)
        return weight if resized is patches else torch.cat([resized, prefix])

    def forward(
        self, img_BCHW: Tensor, mask: PatchMask | None = None, stages: Sequence[int] = (), of: StagePart = "block"
    ) -> Features:
        backbone = self.backbone
        tokens_BND = self.replace_hidden(backbone.patch_embed(img_BCHW), mask)
        tokens_BND = torch.cat([backbone.cls_token.expand(tokens_BND.shape[0], -1, -1), tokens_BND], dim=1)
        shared = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
        tokens_BND, maps = self.run_blocks(tokens_BND, stages, of=of, shared_rel_pos_bias=shared)
        return Features(tokens_BND[:, 1:], self.spec.grid, prefix_BKD=tokens_BND[:, :1], stages_BDhw=maps)

    def _initialise(self, cut: float) -> None:
        def draw(weight: Tensor) -> None:
            trunc_normal_(weight, 0.02, cut)

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
