"""Attention maps: how much each token of a block takes from each token of the same image.

Shapes: B batch, C channels, H W pixels, A attention heads, N tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mim.encoders.base import Encoder
from mim.ops.attention import attention_kernels

ADVICE = (
    "shows no attention: one of its modules must pass the softmax through a module `attn_drop`, as timm's attention "
    "does where its attribute `fused_attn` is False"
)
LARGEST_ERROR = 0.05  # of a sum of shares in bf16


@torch.no_grad()
def attention_maps(encoder: Encoder, img_BCHW: Tensor, blocks: Sequence[int] | None = None) -> dict[int, Tensor]:
    """The softmax attention (B, A, N, N) of blocks on whole images, by the number of the block.

    `maps[block][image, head, i, j]` is the share of token j in what token i takes from all tokens; the shares of a row
    add up to 1. Class token and registers come first (index 0 is the class token, where there is one), then the patches
    row by row. In Swin and Swin V2 the tokens are those of the block's stage, and 0 stands between tokens of different
    windows.

    The encoder runs once, in its present mode, on its own device and in its own precision, and stays as it was. The
    fused kernel, which never holds these weights, is off meanwhile in these blocks.

    Args:
        encoder: with attention as timm writes it; the four encoders of this toolkit, and others alike.
        img_BCHW: normalised images.
        blocks: numbers of blocks, from 0; a negative one counts from the last. None: all blocks. A map takes
            4 B A N^2 bytes, which is 157 MB an image in the first stage of Swin-B at 224 px, and 1.9 MB in ViT-B.

    Raises ValueError where the encoder has no such block, or a block shows no attention, or none of this form: that of
    windows other than Swin's, of channels (XCiT), or with heads that mix behind the softmax (CaiT).
    """
    numbers = range(len(encoder.blocks())) if blocks is None else blocks
    with recorded_attention(encoder, numbers) as weights:
        encoder(img_BCHW)
    return maps_of_record(encoder, weights, numbers, len(img_BCHW))


@contextmanager
def recorded_attention(encoder: Encoder, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass leaves the softmax weights of these blocks, by number; see `attention_maps`."""
    all_blocks = encoder.blocks()
    if not all_blocks:
        raise ValueError(f"ENCODER.name {encoder.name} has no blocks, so there is no attention to show")
    for number in blocks:
        if not -len(all_blocks) <= number < len(all_blocks):
            raise ValueError(
                f"block {number}: the {len(all_blocks)} blocks of this encoder are 0 to {len(all_blocks) - 1}"
            )
    weights: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, arguments: weights.update({number: arguments[0]})

    modules = {number: _after_softmax(all_blocks[number], number) for number in blocks}
    layers = [layer for number in blocks for layer in all_blocks[number].modules()]
    with attention_kernels(layers, fused=False):
        handles = [module.register_forward_pre_hook(keep(number)) for number, module in modules.items()]
        try:
            yield weights
        finally:
            for handle in handles:
                handle.remove()


def maps_of_record(
    encoder: Encoder, weights: Mapping[int, Tensor], blocks: Sequence[int], batch: int, check: bool = True
) -> dict[int, Tensor]:
    """The maps (B, A, N, N) of recorded weights; see `attention_maps`.

    check: whether to look at the values, too: a host sync, which the second call for the same encoder may save.
    """
    for number in blocks:
        if number not in weights:
            raise ValueError(f"block {number} {ADVICE}")
    maps = {number: encoder.whole_attention(encoder.blocks()[number], weights[number]) for number in blocks}
    for number, map_BANN in maps.items():
        square = map_BANN.ndim == 4 and map_BANN.shape[2] == map_BANN.shape[3] and len(map_BANN) == batch
        if not square or (check and (map_BANN.float().sum(dim=-1) - 1).abs().max() > LARGEST_ERROR):  # host sync
            raise ValueError(f"block {number} has no shares that each token takes from all tokens of its image")
    return maps


def _after_softmax(block: nn.Module, number: int) -> nn.Module:
    """The module that is called with the softmax weights."""
    candidates = [getattr(module, "attn_drop", None) for module in block.modules()]
    modules = [candidate for candidate in candidates if isinstance(candidate, nn.Module)]
    if len(modules) != 1:
        raise ValueError(f"block {number} {ADVICE}")
    return modules[0]
