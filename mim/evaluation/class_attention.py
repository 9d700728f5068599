"""What the class token of an encoder attends to.

Shapes: B images, C channels, H W pixels, A attention heads, N tokens, h w patches high and wide.
"""

import torch
from einops import rearrange
from torch import Tensor

from mim.encoders import Encoder
from mim.encoders.attention import attention_maps


def why_no_class_token(encoder: Encoder) -> str:
    """Why there is no attention of a class token; empty where there is."""
    return "" if encoder.spec.num_prefix else f"{encoder.title} has no class token"


@torch.no_grad()
def class_attention(encoder: Encoder, img_BCHW: Tensor) -> Tensor:
    """The share (B, A, h, w) of each patch in what the class token takes in the last block, for each head.

    With the shares of the class token and of registers, which are left out here, they add up to 1. A readout with
    queries of its own shows them in the same form.

    Raises ValueError where the encoder has no class token, or its last block shows no attention.
    """
    reason = why_no_class_token(encoder)
    if reason:
        raise ValueError(reason)
    (map_BANN,) = attention_maps(encoder, img_BCHW, blocks=[-1]).values()
    shares_BAN = map_BANN[:, :, 0, encoder.spec.num_prefix :].float()
    return rearrange(shares_BAN, "b a (h w) -> b a h w", h=encoder.spec.grid[0])
