"""MultiBlock: blocks to predict, from a large block around them (I-JEPA).

Shapes: B batch, H W cells high and wide, L = H * W, K target blocks, N blocks of all samples.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mim.io.checks import at_least
from mim.maskers.base import RatioMasker, rectangles, smallest
from mim.structures import ImageSpec, PatchMask

Range = tuple[float, float]


class MultiBlock(RatioMasker, name="multi_block"):
    """Predicts `targets` blocks, which may overlap, from the cells of a square block of context outside of them.

    Of the context's cells in no target, a sample keeps as many as the ratio says, drawn at random. Where there are too
    few, cells outside of the context are added, and cells of targets last. The loss counts hidden cells of targets.

    Source: I-JEPA (Assran et al., arXiv:2301.08243), facebookresearch/ijepa, src/masks/multiblock.py, and its configs.
    There, a batch keeps of each context its first cells in row order, as many as the smallest context has: on 14 x 14
    cells that is a share of .26 in batches of 128 (a process of its configs), .27 of 64 and .22 of 2048, so that the
    ratio here is .75. Differs from its code: each block has a size of its own, its scale and aspect are drawn apart,
    and it may lie anywhere, where there a batch has one size of targets, one number for both, and never a block
    in the last row or column; a cell of several targets counts once.

    Args:
        targets: number of target blocks, at least 1.
        target_scale: smallest and largest area of a target, as a share of the cells.
        target_aspect: smallest and largest height / width of a target.
        context_scale: smallest and largest area of the context, as a share of the cells.
    """

    def __init__(
        self,
        image: ImageSpec,
        *,
        ratio: float = 0.75,
        targets: int = 4,
        target_scale: Range = (0.15, 0.2),
        target_aspect: Range = (0.75, 1.5),
        context_scale: Range = (0.85, 1.0),
        **shared: Any,
    ) -> None:
        super().__init__(image, ratio=ratio, **shared)
        at_least("MASKER", 1, targets=targets)
        _check_range("target_scale", target_scale, 1)
        _check_range("target_aspect", target_aspect)
        _check_range("context_scale", context_scale, 1)
        self.targets = targets
        self.target_scale, self.target_aspect, self.context_scale = target_scale, target_aspect, context_scale

    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return self._draw(batch, generator, device)[0]

    def sample(self, batch: int, generator: torch.Generator | None, device: torch.device) -> PatchMask:
        """Masks for a batch, with the hidden cells of target blocks as those to predict."""
        hidden_BHW, target_BHW = self._draw(batch, generator, device)
        draw_B = torch.randint(2**31, (batch,), generator=generator, device=device)
        return PatchMask(hidden_BHW, self.visible, draw_B, hidden_BHW & target_BHW)

    def _draw(self, batch: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Hidden cells, and cells of targets, (B, H, W)."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        blocks_NHW = self._blocks(uniform(4, batch * self.targets), self.target_scale, self.target_aspect)
        target_BHW = rearrange(blocks_NHW, "(b k) h w -> b k h w", k=self.targets).any(dim=1)
        context_BHW = self._blocks(uniform(4, batch), self.context_scale, (1.0, 1.0))
        rank_BHW = torch.where(target_BHW, 2.0, 1.0 - context_BHW.float()) + uniform(batch, *self.grid)
        visible_BL = smallest(rearrange(rank_BHW, "b h w -> b (h w)"), self.visible)
        return rearrange(~visible_BL, "b (h w) -> b h w", h=self.grid[0]), target_BHW

    def _blocks(self, uniform_4N: Tensor, scale: Range, aspect: Range) -> Tensor:
        """A rectangle for each column of uniform numbers, (N, H, W), lower and narrower than the grid."""
        area_N = (self.cells * _between(uniform_4N[0], scale)).floor()
        aspect_N = _between(uniform_4N[1], aspect)
        high_N, wide_N = (
            side_N.sqrt().round().clamp(1, max(1, most - 1))
            for side_N, most in zip((area_N * aspect_N, area_N / aspect_N), self.grid, strict=True)
        )
        return rectangles(high_N, wide_N, uniform_4N[2:], self.grid)


def _between(uniform_N: Tensor, ends: Range) -> Tensor:
    return ends[0] + uniform_N * (ends[1] - ends[0])


def _check_range(key: str, ends: Range, most: float = float("inf")) -> None:
    """Raises ValueError where the ends are not above 0, in order, and at most `most`."""
    if not 0 < ends[0] <= ends[1] <= most:
        limit = "" if most == float("inf") else f", at most {most:g}"
        raise ValueError(f"MASKER.{key} is {list(ends)}: it must be two numbers above 0{limit}, the smaller one first")
