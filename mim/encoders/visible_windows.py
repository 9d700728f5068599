"""timm's Swin and Swin V2 on the visible cells of an image alone.

A cell is one token of the last stage, so that patch merging stays inside a cell. Tokens are a tall image of the cells,
one below the other: (B, K t, t, D).

Shapes: B batch, C channels, H W pixels, K visible cells, t tokens of a cell's side, h w tokens high and wide, D width,
M tokens of a batch, G groups of tokens that attend to each other, S places of a group, A attention heads, E width of a
head, R rows of a table of biases.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor

from mim.ops.windows import AttentionPlan, WindowGrid, plan_attention

LARGEST_LOGIT_SCALE = math.log(100)  # Swin V2's


def accept_plans(backbone: Any) -> None:
    """Lets the blocks of a Swin or Swin V2 take a plan of attention beside the tokens. Without one they are timm's."""
    for stage in backbone.layers:
        for block in stage.blocks:
            block.forward = partial(_forward, block)


def visible_stages(backbone: Any, img_BCHW: Tensor, kept_BK: Tensor, cells: tuple[int, int]) -> Iterator[Tensor]:
    """The visible tokens (B, K t, t, D) after each stage, as if hidden tokens were no keys.

    Source: GreenMIM (arXiv:2205.13515), modeling/green_swin_models.py. Differs from it: each image has a mask of its
    own, so tokens go to fixed places of their windows and are not packed by dynamic programming.

    Args:
        backbone: after `accept_plans`.
        kept_BK: indices of the visible cells.
        cells: cells high and wide.
    """
    tokens_BhwD = _embed(backbone.patch_embed, img_BCHW, kept_BK, cells)
    for stage in backbone.layers:
        tokens_BhwD = stage.downsample(tokens_BhwD)
        plans: dict[WindowGrid, AttentionPlan] = {}
        for block in stage.blocks:
            windows = WindowGrid(tuple(block.input_resolution), tuple(block.window_size), tuple(block.shift_size))
            if windows not in plans:
                plans[windows] = plan_attention(kept_BK, cells, windows)
            tokens_BhwD = block(tokens_BhwD, plans[windows])
        yield tokens_BhwD


def map_of_visible(tokens_BhwD: Tensor, kept_BK: Tensor, cells: tuple[int, int]) -> Tensor:
    """The map (B, D, h, w) of the grid with the visible tokens, and 0 elsewhere."""
    tiles_BKP = rearrange(tokens_BhwD, "b (k i) j d -> b k (i j d)", k=kept_BK.shape[1])
    zeros_BKP = tiles_BKP.new_zeros(len(tiles_BKP), math.prod(cells), tiles_BKP.shape[2])
    map_BKP = zeros_BKP.scatter(1, kept_BK[..., None].expand_as(tiles_BKP), tiles_BKP)
    side = tokens_BhwD.shape[2]
    return rearrange(map_BKP, "b (h w) (i j d) -> b d (h i) (w j)", h=cells[0], i=side, j=side)


def _embed(embed: Any, img_BCHW: Tensor, kept_BK: Tensor, cells: tuple[int, int]) -> Tensor:
    """The embedded patches of the visible cells."""
    pixels_MCHW = rearrange(img_BCHW, "b c (h i) (w j) -> (b h w) c i j", h=cells[0], w=cells[1])
    first_B1 = rearrange(torch.arange(len(kept_BK), device=kept_BK.device) * math.prod(cells), "b -> b 1")
    patches_MDhw = embed.proj(pixels_MCHW.index_select(0, (first_B1 + kept_BK).flatten()))
    return embed.norm(rearrange(patches_MDhw, "(b k) d i j -> b (k i) j d", b=len(kept_BK)))


def _forward(block: Any, tokens_BhwD: Tensor, plan: AttentionPlan | None = None) -> Tensor:
    """The forward pass of timm's blocks, with attention by plan where there is one."""
    if plan is None:
        return type(block).forward(block, tokens_BhwD)
    if isinstance(block, SwinTransformerV2Block):
        tokens_BhwD = tokens_BhwD + block.drop_path1(block.norm1(_attend(block.attn, tokens_BhwD, plan)))
        return tokens_BhwD + block.drop_path2(block.norm2(block.mlp(tokens_BhwD)))
    tokens_BhwD = tokens_BhwD + block.drop_path1(_attend(block.attn, block.norm1(tokens_BhwD), plan))
    return tokens_BhwD + block.drop_path2(block.mlp(block.norm2(tokens_BhwD)))


def _attend(attention: Any, tokens_BhwD: Tensor, plan: AttentionPlan) -> Tensor:
    """timm's window attention, by plan."""
    tokens_MD = rearrange(tokens_BhwD, "b h w d -> (b h w) d")
    heads, cosine = attention.num_heads, hasattr(attention, "logit_scale")
    packed_MP, padding_P = (_cosine_parts if cosine else _parts)(attention, tokens_MD)
    places_MP = plan.to_places(packed_MP, padding_P)
    size = plan.penalty.shape[-1]
    query, key, value = rearrange(places_MP, "(g s) (c a e) -> c g a s e", s=size, c=3, a=heads).unbind(0)
    table_RA = _cosine_table(attention) if cosine else attention.relative_position_bias_table
    bias_GASS = plan.biases(table_RA, attention.relative_position_index)
    bias_GASS = bias_GASS + plan.penalty.to(bias_GASS.dtype)
    scale, dropout = 1.0 if cosine else attention.scale, attention.attn_drop
    if getattr(attention, "fused_attn", False):
        rate = dropout.p if attention.training else 0.0
        mixed_GASE = F.scaled_dot_product_attention(query, key, value, bias_GASS, dropout_p=rate, scale=scale)
    else:
        weights_GASS = (query * scale @ key.transpose(-2, -1) + bias_GASS).softmax(dim=-1)
        mixed_GASE = dropout(weights_GASS) @ value
    mixed_MD = plan.from_places(rearrange(mixed_GASE, "g a s e -> (g s) (a e)"))
    return attention.proj_drop(attention.proj(mixed_MD)).view(tokens_BhwD.shape)


def _parts(attention: Any, tokens_MD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Queries, keys and values of Swin, side by side, and those of timm's padding, which are the bias."""
    return attention.qkv(tokens_MD), attention.qkv.bias


def _cosine_parts(attention: Any, tokens_MD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Those of Swin V2, whose queries and keys have length 1; its scale of the scores is in the queries."""
    query_bias, value_bias = attention.q_bias, attention.v_bias
    bias_P = None if query_bias is None else torch.cat([query_bias, attention.k_bias, value_bias])
    packed_MP = F.linear(tokens_MD, attention.qkv.weight, bias_P)
    query, key, value = rearrange(packed_MP, "m (c a e) -> c m a e", c=3, a=attention.num_heads).unbind(0)
    scale_A1 = rearrange(attention.logit_scale.clamp(max=LARGEST_LOGIT_SCALE).exp(), "a 1 1 -> a 1")
    parts = (F.normalize(query, dim=-1) * scale_A1, F.normalize(key, dim=-1), value)
    padding_P = None if bias_P is None else torch.cat([torch.zeros_like(bias_P[: -len(value_bias)]), value_bias])
    return torch.cat([part.to(value.dtype).flatten(1) for part in parts], dim=1), padding_P


def _cosine_table(attention: Any) -> Tensor:
    """Swin V2's table of biases, (R, A), which a small MLP computes."""
    table_1hwA = attention.cpb_mlp(attention.relative_coords_table)
    return 16 * torch.sigmoid(rearrange(table_1hwA, "1 h w a -> (h w) a"))
