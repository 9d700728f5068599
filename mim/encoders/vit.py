"""ViT: a plain vision transformer that drops hidden patches (MAE) or replaces them.

Shapes: B batch, C channels, H W pixels, N tokens, K prefix tokens, D width, P pixel values of a patch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim.encoders.base import Hidden, InferredConfig, square_side
from mim.encoders.plain import Plain
from mim.ops.positions import resize_positions, sincos_table
from mim.ops.truncated_normal import trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask


class ViT(Plain, name="vit"):
    """timm's VisionTransformer, which leaves hidden patches out or replaces them.

    Source: MAE, models_mae.py (LayerNorm eps 1e-6; linear layers xavier-uniform with zero bias, the patch projection
    xavier-uniform as a matrix, class and mask token normal with std .02).

    Args:
        positions: `sincos` (fixed, added before hidden patches are dropped) or `learned`.
        class_token: whether a class token stands ahead of the patch tokens.
    """

    can_drop = True
    free_keys: ClassVar[tuple[str, ...]] = (*Plain.free_keys, "positions")
    backbone: VisionTransformer

    def __init__(
        self,
        image: ImageSpec,
        *,
        hidden: Hidden = "drop",
        positions: Literal["sincos", "learned"] = "sincos",
        class_token: bool = True,
        **shared: Any,
    ):
        backbone = partial(VisionTransformer, class_token=class_token, weight_init="skip")
        super().__init__(image, backbone, int(class_token), hidden=hidden, **shared)
        self._initialise(positions)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """The image size is that of square images, where the table of positions fits one."""
        config = super().infer_config(state)
        width, patch = config.keys["width"], config.keys["patch"]
        table_1ND, class_token = state["backbone.pos_embed"], "backbone.cls_token" in state
        side = square_side(table_1ND.shape[1] - class_token)
        fixed = (
            side
            and width % 4 == 0
            and table_1ND.shape[2] == width
            and torch.allclose(table_1ND.float(), sincos_table((side, side), width, int(class_token)), atol=1e-5)
        )
        keys = {**config.keys, "positions": "sincos" if fixed else "learned", "class_token": class_token}
        size = (side * patch, side * patch) if side else None
        return InferredConfig(keys, config.channels, size, unspecified=("heads",))

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if name != "backbone.pos_embed" or weight.ndim != 3 or weight.shape[2] != self.spec.width:
            return weight
        return resize_positions(weight, self.spec.grid, image_size, self.spec.num_prefix)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | None = None) -> Features:
        backbone, positions_1ND, prefix = self.backbone, self.backbone.pos_embed, self.spec.num_prefix
        assert positions_1ND is not None
        patch_positions_1ND, kept_BN, draw_B = positions_1ND[:, prefix:], None, None
        if mask is not None and self.hidden == "drop":
            kept_BN, draw_B = mask.kept_indices(*self.spec.grid), mask.draw_B
            tokens_BND = self._embed_kept(img_BCHW, kept_BN)
            rows_BND = patch_positions_1ND.expand(kept_BN.shape[0], -1, -1)
            patch_positions_1ND = rows_BND.gather(1, _row_indices(kept_BN, self.spec.width))
        else:
            tokens_BND = backbone.patch_embed(img_BCHW)
        if self.hidden != "drop":
            tokens_BND = self.replace_hidden(tokens_BND, mask)
        tokens_BND = tokens_BND + patch_positions_1ND
        if backbone.cls_token is not None:
            class_1KD = backbone.cls_token + positions_1ND[:, :prefix]
            tokens_BND = torch.cat([class_1KD.expand(tokens_BND.shape[0], -1, -1), tokens_BND], dim=1)
        for block in backbone.blocks:
            tokens_BND = block(tokens_BND)
        tokens_BND = backbone.norm(tokens_BND)
        prefix_BKD = tokens_BND[:, :prefix] if prefix else None
        return Features(tokens_BND[:, prefix:], self.spec.grid, kept_BN, prefix_BKD, draw_B)

    def _embed_kept(self, img_BCHW: Tensor, kept_BN: Tensor) -> Tensor:
        """The embedding of the kept patches only, so that the others cost nothing."""
        embed, patch = self.backbone.patch_embed, self.spec.patch
        patches_BNP = rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        kept_BNP = patches_BNP.gather(1, _row_indices(kept_BN, patches_BNP.shape[2]))
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
            table = trunc_normal_(table, 0.02)
        backbone.pos_embed = nn.Parameter(table, requires_grad=positions == "learned")


def _row_indices(kept_BN: Tensor, width: int) -> Tensor:
    """The indices by which `gather` takes rows of a given width."""
    return kept_BN[..., None].expand(-1, -1, width)
