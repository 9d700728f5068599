"""Way: the base class of the ways in which a backbone of timm leaves hidden cells out.

Shapes: B batch, C channels, H W pixels, h w entries high and wide, N tokens, M kept tokens, K prefix tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mim.encoders.base import Hiding
from mim.encoders.hiding.layout import Layout
from mim.structures import Features, PatchMask

NEEDS_GRID = "its layers need every token of the grid"  # why an architecture cannot drop


class Way(nn.Module, ABC):
    """How a backbone computes the features of a partly hidden image. It holds what the backbone lacks, such as tokens.

    `hiding` is the value of ENCODER.hidden for which it stands; of several ways for one value, each for other
    architectures, the first without an `objection` is taken.

    Args:
        backbone: a model of timm, which a way may prepare; its parameters and their names stay.
        layout: what the backbone returns.

    Attributes:
        cell: side in pixels of the finest cell that can be hidden.
        token_width: channels of the mask token that the encoder has for it; 0 for none.
    """

    hiding: ClassVar[Hiding]
    cell: int
    token_width: int = 0

    def __init__(self, backbone: nn.Module, layout: Layout):
        super().__init__()
        self.layout = layout

    @classmethod
    @abstractmethod
    def objection(cls, backbone: nn.Module) -> str:
        """Why this way does not work for the architecture of a backbone; empty where it does."""

    @abstractmethod
    def forward(
        self, backbone: nn.Module, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        """Features of partly hidden images; no hidden pixel, NaN included, has an effect.

        Args:
            token_11D: the mask token, where `token_width` is not 0.
            stages: of layout.stages, those to return as maps.
        """

    def forget(self) -> None:
        """Drops what layers keep of the last masked images for the backward pass, because whole images come next."""
        return None


def whole(backbone: Any, layout: Layout, img_BCHW: Tensor, stages: Sequence[int] = ()) -> Features:
    """Features of whole images, as timm computes them."""
    if not stages and layout.order != "stage":
        return layout.features(backbone.forward_features(img_BCHW))
    last = len(layout.stages) - 1
    chosen = sorted({*stages, last})
    output, maps = backbone.forward_intermediates(img_BCHW, indices=chosen)
    features = layout.features(maps[-1] if layout.order == "stage" else output)
    return replace(features, stages_BDhw=tuple(maps[chosen.index(stage)] for stage in stages))


def without_hidden_pixels(img_BCHW: Tensor, mask: PatchMask, value: Tensor | float = 0.0) -> Tensor:
    """The images with another value, (C, 1, 1) or one number, in hidden pixels."""
    hidden_B1HW = rearrange(mask.at(*img_BCHW.shape[2:]), "b h w -> b 1 h w")
    return torch.where(hidden_B1HW, torch.as_tensor(value, dtype=img_BCHW.dtype, device=img_BCHW.device), img_BCHW)


def keep_tokens(tokens_BND: Tensor, kept_BM: Tensor, num_prefix: int) -> Tensor:
    """The prefix tokens and the kept patch tokens, (B, K + M, D)."""
    patches_BND = tokens_BND[:, num_prefix:]
    patches_BMD = patches_BND.gather(1, kept_BM[..., None].expand(-1, -1, patches_BND.shape[2]))
    return torch.cat([tokens_BND[:, :num_prefix], patches_BMD], dim=1) if num_prefix else patches_BMD


def map_of_kept(tokens_BND: Tensor, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
    """The map (B, D, h, w) with kept tokens at their places and 0 elsewhere."""
    count, width = grid[0] * grid[1], tokens_BND.shape[2]
    zeros_BND = tokens_BND.new_zeros(tokens_BND.shape[0], count, width)
    map_BND = zeros_BND.scatter(1, kept_BN[..., None].expand(-1, -1, width), tokens_BND)
    return rearrange(map_BND, "b (h w) d -> b d h w", h=grid[0])


@contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, the outputs of modules are kept, in the order in which they are computed."""
    outputs: list[Tensor] = []
    handles = [module.register_forward_hook(lambda module, given, output: outputs.append(output)) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
