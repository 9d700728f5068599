"""Dropping ahead of the first block, in transformers of one width for which timm has no place where tokens leave.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, M kept patch tokens, N tokens, K prefix tokens,
D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from timm.models.cait import Cait
from timm.models.tnt import TNT
from torch import Tensor, nn

from mim.encoders.hiding.base import NEEDS_GRID, Way, keep_tokens, map_of_kept, outputs_of, without_hidden_pixels
from mim.encoders.hiding.layout import Layout
from mim.structures import Features, PatchMask


class DropAtBlocks(Way):
    """Drops hidden tokens ahead of the first block, where blocks alone mix places: CaiT with its class attention.

    What a block reads of positions reaches it as an argument that a subclass gathers for the kept tokens. So a block
    that is computed again in the backward pass reads the same.
    """

    hiding = "drop"
    families: ClassVar[tuple[type[nn.Module], ...]] = (Cait,)

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        self.cell = layout.stride
        self._kept_BM: Tensor | None = None
        first, *_ = self.trunk(backbone).blocks
        first.register_forward_pre_hook(self._keep_tokens)

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return "" if isinstance(backbone, cls.families) else NEEDS_GRID

    @staticmethod
    def trunk(backbone: Any) -> Any:
        """The module of which `blocks` are the blocks."""
        return backbone

    def tokens(self, backbone: Any, img_BCHW: Tensor) -> Tensor:
        """The last tokens (B, K + M, D) of images without hidden pixels."""
        tokens_BND: Tensor = backbone.forward_features(img_BCHW)
        return tokens_BND

    def forward(
        self, backbone: Any, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        layout, numbers, blocks = self.layout, sorted(set(stages)), self.trunk(backbone).blocks
        self._kept_BM = kept_BM = mask.kept_indices(*layout.grid)
        try:
            with outputs_of([blocks[number] for number in numbers]) as outputs:
                tokens_BND = self.tokens(backbone, without_hidden_pixels(img_BCHW, mask))
        finally:
            self._kept_BM = None
        count = kept_BM.shape[1]
        maps = [map_of_kept(self.tokens_of(output)[:, -count:], kept_BM, layout.grid) for output in outputs]
        prefix_BKD = tokens_BND[:, : layout.num_prefix] if layout.has_class else None
        features = Features(tokens_BND[:, -count:], layout.grid, kept_BM, prefix_BKD, mask.draw_B)
        return replace(features, stages_BDhw=tuple(maps[numbers.index(stage)] for stage in stages))

    def tokens_of(self, output: Any) -> Tensor:
        """The tokens in the output of a block, patch tokens last."""
        tokens_BND: Tensor = output
        return tokens_BND

    def num_prefix(self, tokens_BND: Tensor) -> int:
        """How many tokens are ahead of those of the whole grid."""
        high, wide = self.layout.grid
        return tokens_BND.shape[1] - high * wide

    def _keep_tokens(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook: what enters the first block, with the kept patch tokens alone while a mask is at work."""
        if self._kept_BM is None:
            return args
        return (keep_tokens(args[0], self._kept_BM, self.num_prefix(args[0])), *args[1:])


class DropPixelTokens(DropAtBlocks):
    """Drops hidden patches of TNT, and with each the tokens of its pixels, which attend to each other alone."""

    families = (TNT,)

    def tokens_of(self, output: Any) -> Tensor:
        tokens_BND: Tensor = output[1]
        return tokens_BND

    def _keep_tokens(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._kept_BM is None:
            return args
        pixels, tokens_BND = args  # (B N, pixels of a patch, their width)
        pixels = pixels.unflatten(0, (len(tokens_BND), -1)).flatten(2)
        pixels = keep_tokens(pixels, self._kept_BM, 0).reshape(-1, *args[0].shape[1:])
        return pixels, keep_tokens(tokens_BND, self._kept_BM, self.num_prefix(tokens_BND))


def keep_pairs(pairs_DNN: Tensor, kept_BM: Tensor, num_prefix: int) -> Tensor:
    """Values of pairs of tokens, for pairs of prefix and kept ones: (B, D, K + M, K + M)."""
    prefix_BK = torch.arange(num_prefix, device=kept_BM.device).expand(len(kept_BM), -1)
    places_BN = torch.cat([prefix_BK, kept_BM + num_prefix], dim=1)
    return pairs_DNN[:, places_BN[:, :, None], places_BN[:, None, :]].transpose(0, 1)
