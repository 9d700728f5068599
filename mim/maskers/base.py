"""Masker: the base class of the parts that choose which cells of an image are hidden.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from mim.ops.seeding import scores
from mim.registry import Component
from mim.structures import ImageSpec, PatchMask

OWN = 0x2F0A57C3  # tells the draws of hide_missing from those of other parts that use draw_B
Rounding = Literal["floor_visible", "ceil_hidden", "floor_hidden"]


class Masker(Component, ABC, section="MASKER"):
    """Hides the same number of cells in every sample of a batch.

    A subclass sets `visible`, the number of visible cells of a sample, in its constructor, and implements `hide`.

    Args:
        cell: side of a cell in pixels; it must divide the image height and width.
    """

    of_image: ClassVar[bool] = False  # whether `finish` chooses anew, from what a teacher attends to
    visible: int

    def __init__(self, image: ImageSpec, *, cell: int = 16):
        self.cell = cell
        self.grid = image.grid(cell, "MASKER.cell")
        self.cells = self.grid[0] * self.grid[1]

    @property
    def ratio(self) -> float:
        """The share of hidden cells after rounding."""
        return 1 - self.visible / self.cells

    @abstractmethod
    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Draws bool maps (B, H, W), True where hidden; exactly `visible` cells of each sample are False.

        Runs on `device` without a host sync and draws from `generator` alone.
        """

    def sample(self, batch: int, generator: torch.Generator | None, device: torch.device) -> PatchMask:
        """Masks for a batch. `generator` must be on `device`."""
        hidden_BHW = self.hide(batch, generator, device)
        draw_B = torch.randint(2**31, (batch,), generator=generator, device=device)
        return PatchMask(hidden_BHW, self.visible, draw_B)

    def hide_missing(self, mask: PatchMask) -> PatchMask:
        """The mask with the cells of missing pixels among the hidden ones; as it is where nothing is missing.

        As many other hidden cells become visible, chosen by `mask.draw_B`, so that each sample keeps `visible` cells.
        Where more cells lack pixels than are hidden, some of them stay visible.
        """
        if mask.missing_BHW is None or mask.draw_B is None:
            return mask
        hidden_BL, missing_BL = (rearrange(each, "b h w -> b (h w)") for each in (mask.hidden_BHW, mask.missing_BHW))
        uniform_BL = scores(mask.draw_B ^ OWN, self.cells).double() / 2**32  # in [0, 1)
        visible_BL = smallest(2 * missing_BL + hidden_BL.double() + uniform_BL, self.visible)
        hidden_BHW = rearrange(~visible_BL, "b (h w) -> b h w", h=self.grid[0])
        predicted_BHW = None if mask.predicted_BHW is None else mask.predicted_BHW & hidden_BHW
        return replace(mask, hidden_BHW=hidden_BHW, predicted_BHW=predicted_BHW)

    def finish(self, mask: PatchMask, attention_BHW: Tensor) -> PatchMask:
        """The masks of some images, where `of_image`, from the attention of a teacher on any grid, all above 0.

        Chooses by `mask.draw_B`, and draws nothing.
        """
        return mask


class RatioMasker(Masker):
    """Base of the maskers that hide a share `ratio` of the cells.

    Args:
        ratio: share of hidden cells, between 0 and 1, both excluded.
        rounding: `floor_visible` keeps int(cells * (1 - ratio)) cells (MAE); `ceil_hidden` hides ceil(cells * ratio)
            cells (SimMIM); `floor_hidden` hides int(ratio * cells) cells (vit-pytorch).
    """

    def __init__(
        self, image: ImageSpec, *, ratio: float = 0.75, rounding: Rounding = "floor_visible", **shared: Any
    ) -> None:
        super().__init__(image, **shared)
        self.visible = visible_cells(self.cells, ratio, rounding)


def visible_cells(cells: int, ratio: float, rounding: Rounding) -> int:
    """The number of `cells` that stay visible at a masking ratio.

    Raises ValueError where the ratio is not between 0 and 1, and where every cell or no cell would be hidden.
    Source: MAE, models_mae.py, random_masking (floor_visible); SimMIM, data_simmim.py, MaskGenerator (ceil_hidden);
    vit-pytorch, mae.py (floor_hidden). The first two differ only by floating point: of 100 cells at ratio .9,
    floor_visible keeps 9 and ceil_hidden 10. Where cells * ratio is no whole number, floor_hidden hides one cell less.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"MASKER.ratio is {ratio}: it must lie between 0 and 1, both excluded")
    if rounding == "floor_visible":
        visible = int(cells * (1 - ratio))
    else:
        visible = cells - (math.ceil(cells * ratio) if rounding == "ceil_hidden" else int(ratio * cells))
    if not 0 < visible < cells:
        raise ValueError(
            f"MASKER.ratio {ratio} of {cells} cells leaves {visible} visible: at least one cell must be visible and "
            "one hidden; change MASKER.ratio, or use smaller cells with MASKER.cell"
        )
    return visible


def smallest(score_BL: Tensor, count: int | Tensor) -> Tensor:
    """True at the `count` smallest scores of each row, (B, L); `count` is an int, or (B, 1) with one count a row."""
    order_BL = score_BL.argsort(dim=1, stable=True)
    if isinstance(count, int):
        return torch.zeros_like(score_BL, dtype=torch.bool).scatter_(1, order_BL[:, :count], True)
    return order_BL.argsort(dim=1) < count


def rectangles(high_N: Tensor, wide_N: Tensor, uniform_2N: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bool maps (N, H, W), True in a rectangle of that many cells, at a place that uniform numbers in [0, 1) choose:
    every place within the grid is equally likely.
    """
    height, width = grid
    top_N = (uniform_2N[0] * (height - high_N + 1)).floor()
    left_N = (uniform_2N[1] * (width - wide_N + 1)).floor()
    row_H = torch.arange(height, device=uniform_2N.device)
    column_W = torch.arange(width, device=uniform_2N.device)
    rows_NH = (row_H >= top_N[:, None]) & (row_H < (top_N + high_N)[:, None])
    columns_NW = (column_W >= left_N[:, None]) & (column_W < (left_N + wide_N)[:, None])
    return rows_NH[:, :, None] & columns_NW[:, None, :]
