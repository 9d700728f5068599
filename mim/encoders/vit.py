"""ViT: a plain vision transformer that can drop hidden patches (MAE) or replace them.

Shapes: B batch, C channels, H W pixels, N tokens, K prefix tokens, D width.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, InferredConfig, square, timm_arguments
from mim.io.checks import at_least
from mim.io.weights import depth_of
from mim.ops.positions import resize_positions, sincos_table
from mim.structures import Features, ImageSpec, PatchMask


class ViT(Encoder, name="vit"):
    """timm's VisionTransformer, under its own parameter names in `backbone`, with masking composed around it.

    Args:
        patch: side of a patch in pixels; width, depth, heads, mlp_ratio: of the transformer.
        positions: `sincos` (fixed, added before hidden patches are dropped) or `learned`.
        class_token: a class token goes ahead of the patches.
        norm: a LayerNorm on the tokens that come out; fine-tuning on their mean puts it behind the mean instead.
        drop_path: stochastic depth rate of the last block, rising linearly from 0.

    Source: MAE, models_mae.py (LayerNorm eps 1e-6; linear layers xavier-uniform with zero bias, the patch projection
    xavier-uniform as a matrix, class and mask token normal with std .02).
    """

    can_drop = True

    def __init__(
        self,
        image: ImageSpec,
        *,
        hidden: Hidden = "drop",
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "learned"] = "sincos",
        class_token: bool = True,
        norm: bool = True,
        drop_path: float = 0.0,
    ):
        at_least("ENCODER", 1, width=width, depth=depth, heads=heads)
        shared = timm_arguments(image, patch, width, mlp_ratio, drop_path)
        super().__init__(image, hidden, width=width, patch=patch, num_prefix=int(class_token))
        if width % heads:
            raise ValueError(f"ENCODER.heads {heads} does not divide ENCODER.width {width}")
        self.backbone = VisionTransformer(
            **shared,
            depth=depth,
            num_heads=heads,
            class_token=class_token,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="skip",
        )
        if not norm:
            self.backbone.norm = nn.Identity()
        self._initialise(positions)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """A table of positions is taken for that of a square image."""
        width, channels, _, patch = state["backbone.patch_embed.proj.weight"].shape
        table_1ND, class_token = state["backbone.pos_embed"], "backbone.cls_token" in state
        side = square(table_1ND.shape[1] - class_token)
        fixed = (
            side
            and width % 4 == 0
            and table_1ND.shape[2] == width
            and torch.allclose(table_1ND.float(), sincos_table((side, side), width, int(class_token)), atol=1e-5)
        )
        keys = {
            "patch": patch,
            "width": width,
            "depth": depth_of(state, "backbone.blocks."),
            "mlp_ratio": len(state["backbone.blocks.0.mlp.fc1.weight"]) / width,
            "positions": "sincos" if fixed else "learned",
            "class_token": class_token,
            "norm": "backbone.norm.weight" in state,
        }
        return InferredConfig(keys, channels, (side * patch, side * patch) if side else None, unspecified=("heads",))

    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.blocks)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        backbone = self.backbone
        tokens = [token for token in (self.mask_token, backbone.cls_token, backbone.pos_embed) if token is not None]
        return [[*tokens, *backbone.patch_embed.parameters()], *(list(block.parameters()) for block in self.blocks())]

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        return [block.norm2, block.mlp]  # type: ignore[list-item]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if name != "backbone.pos_embed" or weight.ndim != 3 or weight.shape[2] != self.spec.width:
            return weight
        return resize_positions(weight, self.spec.grid, image_size, self.spec.num_prefix)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        backbone, positions_1ND, prefix = self.backbone, self.backbone.pos_embed, self.spec.num_prefix
        assert positions_1ND is not None
        places_1ND, kept_BN, draw_B = positions_1ND[:, prefix:], None, None
        if mask is not None and self.hidden == "drop":
            kept_BN, draw_B = mask.kept_indices(*self.spec.grid), mask.draw_B
            tokens_BND = self._embed_kept(img_BCHW, kept_BN)
            places_1ND = places_1ND.expand(len(kept_BN), -1, -1).gather(1, _at(kept_BN, self.spec.width))
        else:
            tokens_BND = backbone.patch_embed(img_BCHW)
        if self.hidden != "drop":
            tokens_BND = self.replace_hidden(tokens_BND, mask)
        tokens_BND = tokens_BND + places_1ND
        if backbone.cls_token is not None:
            class_1KD = backbone.cls_token + positions_1ND[:, :prefix]
            tokens_BND = torch.cat([class_1KD.expand(len(tokens_BND), -1, -1), tokens_BND], dim=1)
        for block in backbone.blocks:
            tokens_BND = block(tokens_BND)
        tokens_BND = backbone.norm(tokens_BND)
        prefix_BKD = tokens_BND[:, :prefix] if prefix else None
        return Features(tokens_BND[:, prefix:], self.spec.grid, kept_BN, prefix_BKD, draw_B)

    def _embed_kept(self, img_BCHW: Tensor, kept_BN: Tensor) -> Tensor:
        """The patch embedding of the kept patches alone: the others cost nothing."""
        embed, patch = self.backbone.patch_embed, self.spec.patch
        patches_BNP = rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        kept_BNP = patches_BNP.gather(1, _at(kept_BN, patches_BNP.shape[2]))
        matrix_DP = rearrange(embed.proj.weight, "d c p q -> d (c p q)")
        return embed.norm(F.linear(kept_BNP, matrix_DP, embed.proj.bias))

    def _initialise(self, positions: str) -> None:
        backbone = self.backbone
        for module in backbone.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            projection = backbone.patch_embed.proj.weight
            matrix = torch.empty_like(rearrange(projection, "d c p q -> d (c p q)"))
            projection.copy_(nn.init.xavier_uniform_(matrix).view_as(projection))
        for token in (backbone.cls_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        table = sincos_table(self.spec.grid, self.spec.width, self.spec.num_prefix)
        if positions == "learned":
            table = nn.init.trunc_normal_(table, std=0.02)
        backbone.pos_embed = nn.Parameter(table, requires_grad=positions == "learned")


def _at(kept_BN: Tensor, width: int) -> Tensor:
    """Indices for gathering rows of that width."""
    return kept_BN[..., None].expand(-1, -1, width)
