"""VisiblePlaces: maps without their hidden places, in the form of maps, so that layers compute on them.

Shapes: B batch, D width, h w entries of a map high and wide, V visible cells of a sample, c side of a cell in entries
of a map, N = V c c visible places of a map, R = V c rows of c entries each.
"""

import torch
from einops import rearrange
from torch import Tensor

from mim.structures import PatchMask


class CellsError(ValueError):
    """A map that is no whole number of entries for each cell."""


class VisiblePlaces:
    """Which places of maps are visible. A map (B, D, h, w) has them as (B, D, N, 1), cell after cell.

    Args:
        mask: hides equally many cells of every sample.
        grid: cells high and wide.
        cell: side of a cell in pixels.

    Attributes:
        cells: V.
        kept_BV: indices of the visible cells, row by row, in the grid.

    Raises ValueError where samples differ in their number of visible cells, or the mask is finer than the grid.
    """

    def __init__(self, mask: PatchMask, grid: tuple[int, int], cell: int):
        self.grid, self.kept_BV = grid, mask.kept_indices(*grid)
        self.cells = self.kept_BV.shape[1]
        sides = [side for side in range(1, cell + 1) if cell % side == 0]
        self._rows = {side: self._rows_of(side) for side in sides}

    def side_of(self, count: int) -> int:
        """The side c of a cell in a map that has `count` visible places. Raises CellsError where there is none."""
        for side in self._rows:
            if side**2 * self.cells == count:
                return side
        raise CellsError(f"computes on {count} places, which are not those of {self.cells} cells")

    def gather(self, map_BDhw: Tensor) -> Tensor:
        """The visible places (B, D, N, 1) of a map. Raises CellsError where the grid does not divide the map."""
        batch, width, high, wide = map_BDhw.shape
        sides = [side for side in self._rows if (high, wide) == (self.grid[0] * side, self.grid[1] * side)]
        if not sides:
            raise CellsError(f"makes a map of {high}x{wide}, which {self.grid[0]}x{self.grid[1]} cells do not divide")
        side = sides[0]
        rows = rearrange(map_BDhw, "b d h (q j) -> (b h q) (j d)", q=self.grid[1])
        return rearrange(rows.index_select(0, self._rows[side]), "(b r) (j d) -> b d (r j) 1", b=batch, d=width)

    def scatter(self, places_BDN1: Tensor, fill: float = 0.0) -> Tensor:
        """The map (B, D, h, w) of visible places, with one value in all others."""
        batch, _, count, _ = places_BDN1.shape
        side = self.side_of(count)
        rows = rearrange(places_BDN1, "b d (r j) 1 -> (b r) (j d)", j=side)
        all_rows = rows.new_full((batch * self.grid[0] * side * self.grid[1], rows.shape[1]), fill)
        all_rows = all_rows.index_copy(0, self._rows[side], rows)
        return rearrange(all_rows, "(b h q) (j d) -> b d h (q j)", b=batch, q=self.grid[1], j=side)

    def apart(self, places_BDN1: Tensor) -> Tensor:
        """Each visible cell as a map of its own, (B V, D, c, c)."""
        side = self.side_of(places_BDN1.shape[2])
        return rearrange(places_BDN1, "b d (v i j) 1 -> (b v) d i j", i=side, j=side)

    def together(self, cells: Tensor) -> Tensor:
        """The places (B, D, N, 1) of the maps (B V, D, c, c) of single cells."""
        return rearrange(cells, "(b v) d i j -> b d (v i j) 1", v=self.cells)

    def _rows_of(self, side: int) -> Tensor:
        """Numbers of the visible rows of all rows (b, h, q) of a batch, (B R): q is the column of the cell."""
        (high, wide), device = self.grid, self.kept_BV.device
        first_BV = torch.arange(len(self.kept_BV), device=device)[:, None] * (high * side * wide)
        first_BV = first_BV + self.kept_BV // wide * (side * wide) + self.kept_BV % wide
        return rearrange(first_BV[..., None] + torch.arange(side, device=device) * wide, "b v i -> (b v i)")
