"""ViT: a plain vision transformer that drops hidden patches (MAE) or replaces them.

Shapes: B batch, C channels, H W pixels, N tokens, K prefix tokens, D width, P pixel values of a patch.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mim.encoders.base import Hidden, InferredConfig, StagePart, square_side
from mim.encoders.plain import Plain
from mim.io.checks import above_zero, at_least
from mim.ops.attention import attention_layer
from mim.ops.initial import NORMAL_STD, LinearInit, initialise_linear
from mim.ops.positions import resize_positions, sincos_table
from mim.ops.truncated_normal import trunc_normal_
from mim.structures import Features, ImageSpec, PatchMask

FIRST_ATTENTION = "backbone.blocks.0.attn"


class PostNormBlock(Block):
    """timm's block with each norm behind the residual sum of its branch, in place of ahead of the branch."""

    def forward(self, tokens_BND: Tensor) -> Tensor:  # type: ignore[override]
        tokens_BND = self.norm1(tokens_BND + self.drop_path1(self.ls1(self.attn(tokens_BND))))
        return self.norm2(tokens_BND + self.drop_path2(self.ls2(self.mlp(tokens_BND))))


class ViT(Plain, name="vit"):
    """timm's VisionTransformer, which leaves hidden patches out or replaces them.

    Source: MAE, models_mae.py; with other values of the last keys vit-pytorch, vit.py and mae.py, and
    IcarusWizard/MAE, model.py.

    Args:
        positions: `sincos` (fixed, added before hidden patches are dropped) or `learned`.
        class_token: whether a class token stands ahead of the patch tokens.
        class_position: whether the class token has a position too. IcarusWizard/MAE: false.
        qkv_bias: whether queries, keys and values have a bias. vit-pytorch and IcarusWizard/MAE: false.
        head_width: channels of an attention head, for which heads need not divide the width; 0: width / heads.
            vit-pytorch: 64.
        patch_norm: whether a LayerNorm stands before the projection of a patch, over its pixels, and another one behind
            it. vit-pytorch: true.
        norm_first: whether the norms of a block stand ahead of attention and MLP. With false, as in data2vec 2.0, they
            stand behind the residual sums, and a further one ahead of the first block; `norm` is then false there.
        linear_init: how weights begin: `xavier` (MAE: linear layers xavier-uniform with zero bias, the patch
            projection xavier-uniform as a matrix), `normal` (MaskFeat, I-JEPA: both normal with standard deviation
            0.02, zero bias), or `pytorch` (each layer as PyTorch makes it).
        init_std: standard deviation with which class token, mask token and learned positions begin, above 0.
            MAE: 0.02; vit-pytorch: 1.
    """

    can_drop = True
    free_keys: ClassVar[tuple[str, ...]] = (*Plain.free_keys, "positions", "linear_init", "init_std")
    backbone: VisionTransformer
    pixel_norm: nn.Module | None
    first_norm: nn.Module | None

    def __init__(
        self,
        image: ImageSpec,
        *,
        hidden: Hidden = "drop",
        positions: Literal["sincos", "learned"] = "sincos",
        class_token: bool = True,
        class_position: bool = True,
        qkv_bias: bool = True,
        head_width: int = 0,
        patch_norm: bool = False,
        norm_first: bool = True,
        linear_init: LinearInit = "xavier",
        init_std: float = 0.02,
        **shared: Any,
    ):
        at_least("ENCODER", 0, head_width=head_width)
        above_zero("ENCODER", init_std=init_std)
        backbone = partial(
            VisionTransformer,
            class_token=class_token,
            no_embed_class=not class_position,
            qkv_bias=qkv_bias,
            attn_layer=attention_layer(head_width),
            block_fn=Block if norm_first else PostNormBlock,
            weight_init="skip",
        )
        super().__init__(image, backbone, int(class_token), head_width > 0, hidden=hidden, **shared)
        self.num_placed = int(class_token and class_position)  # prefix tokens with a position
        self.pixel_norm = None
        if patch_norm:
            self.pixel_norm = self.norm_layer(image.channels * self.spec.patch**2)
            self.backbone.patch_embed.norm = self.norm_layer(self.spec.width)
        self.first_norm = None if norm_first else self.norm_layer(self.spec.width)
        self._initialise(positions, linear_init, init_std)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """The image size is that of square images, where the table of positions fits one with the class token's."""
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
        keys = {
            **config.keys,
            "positions": "sincos" if fixed else "learned",
            "class_token": class_token,
            "qkv_bias": f"{FIRST_ATTENTION}.qkv.bias" in state,
            "patch_norm": "pixel_norm.weight" in state,
            "norm_first": "first_norm.weight" not in state,
        }
        size = (side * patch, side * patch) if side else None
        projection = state.get(f"{FIRST_ATTENTION}.proj.weight")
        wide = projection is not None and len(projection) == width != projection.shape[-1]
        return InferredConfig(keys, config.channels, size, unspecified=("heads", *(["head_width"] if wide else [])))

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        stem, *blocks = super().layer_parameters()
        norms = [norm for norm in (self.pixel_norm, self.first_norm) if norm is not None]
        return [[*stem, *(parameter for norm in norms for parameter in norm.parameters())], *blocks]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if name != "backbone.pos_embed" or weight.ndim != 3 or weight.shape[2] != self.spec.width:
            return weight
        return resize_positions(weight, self.spec.grid, image_size, self.num_placed)

    def forward(
        self, img_BCHW: Tensor, mask: PatchMask | None = None, stages: Sequence[int] = (), of: StagePart = "block"
    ) -> Features:
        backbone, positions_1ND, prefix = self.backbone, self.backbone.pos_embed, self.spec.num_prefix
        assert positions_1ND is not None
        patch_positions_1ND, kept_BN, draw_B = positions_1ND[:, self.num_placed :], None, None
        if mask is not None and self.hidden == "drop":
            kept_BN, draw_B = mask.kept_indices(*self.spec.grid), mask.draw_B
            patches_BNP = self._patches(img_BCHW)
            tokens_BND = self._embed(patches_BNP.gather(1, _row_indices(kept_BN, patches_BNP.shape[2])))
            rows_BND = patch_positions_1ND.expand(kept_BN.shape[0], -1, -1)
            patch_positions_1ND = rows_BND.gather(1, _row_indices(kept_BN, self.spec.width))
        elif self.pixel_norm is not None:
            tokens_BND = self._embed(self._patches(img_BCHW))
        else:
            tokens_BND = backbone.patch_embed(img_BCHW)
        if self.hidden != "drop":
            tokens_BND = self.replace_hidden(tokens_BND, mask)
        tokens_BND = tokens_BND + patch_positions_1ND
        if backbone.cls_token is not None:
            class_1KD = backbone.cls_token + positions_1ND[:, :prefix] if self.num_placed else backbone.cls_token
            tokens_BND = torch.cat([class_1KD.expand(tokens_BND.shape[0], -1, -1), tokens_BND], dim=1)
        if self.first_norm is not None:
            tokens_BND = self.first_norm(tokens_BND)
        tokens_BND, maps = self.run_blocks(tokens_BND, stages, kept_BN, of)
        prefix_BKD = tokens_BND[:, :prefix] if prefix else None
        return Features(tokens_BND[:, prefix:], self.spec.grid, kept_BN, prefix_BKD, draw_B, maps)

    def _patches(self, img_BCHW: Tensor) -> Tensor:
        """The pixels of each patch, (B, N, P)."""
        return rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=self.spec.patch, q=self.spec.patch)

    def _embed(self, patches_BNP: Tensor) -> Tensor:
        """The embedding of these patches only, so that others cost nothing."""
        embed = self.backbone.patch_embed
        if self.pixel_norm is not None:
            patches_BNP = self.pixel_norm(patches_BNP)
        matrix_DP = rearrange(embed.proj.weight, "d c p q -> d (c p q)")
        return embed.norm(F.linear(patches_BNP, matrix_DP, embed.proj.bias))

    def _initialise(self, positions: str, linear_init: LinearInit, std: float) -> None:
        backbone, embed = self.backbone, self.backbone.patch_embed.proj
        initialise_linear(backbone, linear_init)
        if linear_init == "xavier":
            with torch.no_grad():
                matrix = torch.empty_like(rearrange(embed.weight, "d c p q -> d (c p q)"))
                embed.weight.copy_(nn.init.xavier_uniform_(matrix).view_as(embed.weight))
        elif linear_init == "normal":
            nn.init.normal_(embed.weight, std=NORMAL_STD)
            nn.init.zeros_(embed.bias)
        for token in (backbone.cls_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=std)
        table = sincos_table(self.spec.grid, self.spec.width, self.num_placed)
        if positions == "learned":
            table = trunc_normal_(table, std, 100 * std)
        backbone.pos_embed = nn.Parameter(table, requires_grad=positions == "learned")


def _row_indices(kept_BN: Tensor, width: int) -> Tensor:
    """The indices by which `gather` takes rows of a given width."""
    return kept_BN[..., None].expand(-1, -1, width)
