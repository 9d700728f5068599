"""Masker: the family of parts that decide which cells of an image are hidden.

Shapes: B batch, H W cells high and wide, L = H * W.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from mim.registry import Component
from mim.structures import ImageSpec, PatchMask

Rounding = Literal["floor_visible", "ceil_hidden"]


class Masker(Component, ABC, section="MASKER"):
    """Hides the same number of cells in every sample of a batch.

    A masker states `visible`, its number of visible cells, when it is built, and answers `hide` on the device and
    without a host sync. `cell` is the side of a cell in pixels and must divide the image.
    """

    visible: int

    def __init__(self, image: ImageSpec, *, cell: int = 16):
        self.cell = cell
        self.grid = image.grid(cell, "MASKER.cell")
        self.cells = self.grid[0] * self.grid[1]

    @property
    def ratio(self) -> float:
        """The true share of hidden cells, after rounding."""
        return 1 - self.visible / self.cells

    @abstractmethod
    def hide(self, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """A bool map (B, H, W), True where hidden, with exactly `visible` cells of each sample False."""

    def sample(self, batch: int, generator: torch.Generator | None, device: torch.device) -> PatchMask:
        """Masks for a batch, drawn from `generator`, which lives on `device`."""
        hidden_BHW = self.hide(batch, generator, device)
        draw_B = torch.randint(2**31, (batch,), generator=generator, device=device)
        return PatchMask(hidden_BHW, self.visible, draw_B)


def visible_cells(cells: int, ratio: float, rounding: Rounding) -> int:
    """How many of `cells` stay visible at a masking ratio in (0, 1).

    floor_visible keeps int(cells * (1 - ratio)) (MAE, models_mae.py, random_masking); ceil_hidden hides
    ceil(cells * ratio) (SimMIM, data_simmim.py, MaskGenerator). They differ only where floating point does: of 100
    cells at ratio .9 the first keeps 9 and the second 10. Raises ValueError where nothing or everything is hidden.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"MASKER.ratio is {ratio}: it must lie between 0 and 1, both excluded")
    visible = int(cells * (1 - ratio)) if rounding == "floor_visible" else cells - math.ceil(cells * ratio)
    if not 0 < visible < cells:
        raise ValueError(
            f"MASKER.ratio {ratio} of {cells} cells leaves {visible} visible: at least one cell must be visible and "
            "one hidden; change MASKER.ratio, or take smaller cells with MASKER.cell"
        )
    return visible


def smallest(score_BL: Tensor, count: int | Tensor) -> Tensor:
    """True at the `count` smallest scores of each row; `count` is an int, or (B, 1) to differ by row."""
    rank_BL = score_BL.argsort(dim=1, stable=True).argsort(dim=1)
    return rank_BL < count
