"""Attention inside windows among visible tokens alone, under a mask of its own for each sample.

Shapes: B batch, K visible cells of a sample, N visible tokens of a sample, M rows of a batch, D width,
V windows of the grid, G groups of a sample, S places of a group, A attention heads, R rows of a table of biases.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

HIDDEN = -30000.0  # added to the score of a key that must have no weight: exp is 0, and fp16 can hold it
OTHER_REGION = -100.0  # timm's, between parts of the image that only the shift brings into one window


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The windows of a block, as timm cuts them: the grid is rolled by the shift, then padded to whole windows.

    Args:
        grid: tokens high and wide.
        window: tokens of a window, high and wide.
        shift: tokens by which the grid is rolled, up and left.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def counts(self) -> tuple[int, int]:
        """Windows high and wide."""
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def pads(self) -> bool:
        """Whether padding completes the last windows."""
        return any(side % window for side, window in zip(self.grid, self.window, strict=True))

    def most_windows(self, cells: tuple[int, int], visible: int) -> int:
        """The most windows that so many cells of a coarser grid can touch."""
        rows, columns = self._touched(0, cells[0]), self._touched(1, cells[1])
        each = sorted((high * wide for high in rows for wide in columns), reverse=True)
        return min(math.prod(self.counts), sum(each[:visible]))

    def regions(self, at: Tensor, axis: int) -> Tensor:
        """The regions of rows or columns of the rolled grid: before the last window, and in it before and after the
        edge of the image."""
        end = self.window[axis] * self.counts[axis]
        return (at >= end - self.window[axis]).long() + (at >= end - self.shift[axis]).long()

    def _touched(self, axis: int, cells: int) -> list[int]:
        """Windows along an axis that each of the cells touches."""
        side, window, shift = self.grid[axis], self.window[axis], self.shift[axis]
        numbers = [(token - shift) % side // window for token in range(side)]
        tile = side // cells
        return [len(set(numbers[first : first + tile])) for first in range(0, side, tile)]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Which visible tokens attend to each other in the blocks of one stage and shift.

    Each sample has `groups` of places, and attention stays in a group. Groups are windows, with empty places where
    tokens are hidden; or all tokens of a sample are one group, which is cheaper where few are left.

    Args:
        groups: groups of a sample.
        token_M: token at each place, of all B G S places; B N at an empty one. None: the places are the tokens.
        place_M: place of each of the B N tokens.
        padding_M1: whether timm pads the grid at a place; None where it has no padding.
        penalty: (B G, 1, S or 1, S), what is added to the score of query and key.
        bias_M: row of the table of biases for each of B N N pairs; None: the pairs are those of a window.
    """

    groups: int
    penalty: Tensor
    token_M: Tensor | None = None
    place_M: Tensor | None = None
    padding_M1: Tensor | None = None
    bias_M: Tensor | None = None

    def to_places(self, rows_MD: Tensor, padding_D: Tensor | None = None) -> Tensor:
        """The tokens at their places, 0 at empty ones, and `padding_D` where timm pads the grid."""
        if self.token_M is None:
            return rows_MD
        placed_MD = _Move.apply(rows_MD, self.token_M, self.place_M, True)
        if self.padding_M1 is None or padding_D is None:
            return placed_MD
        return torch.where(self.padding_M1, padding_D.to(placed_MD.dtype), placed_MD)

    def from_places(self, rows_MD: Tensor) -> Tensor:
        """The tokens, from their places."""
        return rows_MD if self.place_M is None else _Move.apply(rows_MD, self.place_M, self.token_M, False)

    def biases(self, table_RA: Tensor, window_M: Tensor) -> Tensor:
        """The biases (B G or 1, A, S, S) from a table.

        Args:
            window_M: row of the table for each pair of places of a window.
        """
        rows_M = window_M if self.bias_M is None else self.bias_M
        size = self.penalty.shape[-1]
        biases_AM = table_RA.t().index_select(1, rows_M.flatten())
        return rearrange(biases_AM, "a (g q k) -> g a q k", q=size, k=size)


def plan_attention(kept_BK: Tensor, cells: tuple[int, int], windows: WindowGrid) -> AttentionPlan:
    """The cheaper plan for the tokens of kept cells, by the number of scores. No host sync.

    The tokens of a sample are in the order of its cells, and row by row in a cell.

    Args:
        kept_BK: indices of the kept cells.
        cells: cells high and wide; each has the same number of tokens of the grid.
    """
    visible = kept_BK.shape[1]
    groups = windows.most_windows(cells, visible)
    tokens = visible * math.prod(windows.grid) // math.prod(cells)
    places = _Places.of_kept(kept_BK, cells, windows)
    if windows.pads:
        return _in_windows(places, windows, math.prod(windows.counts))
    if tokens**2 <= groups * math.prod(windows.window) ** 2:
        return _in_one_group(places, windows)
    return _in_windows(places, windows, groups)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where tokens lie, each (B, N): number of the window, row and column in it, and region of the rolled grid."""

    window: Tensor
    row: Tensor
    column: Tensor
    region: Tensor

    @classmethod
    def of_kept(cls, kept_BK: Tensor, cells: tuple[int, int], windows: WindowGrid) -> "_Places":
        tile = tuple(side // count for side, count in zip(windows.grid, cells, strict=True))
        offsets = [torch.arange(side, device=kept_BK.device) for side in tile]
        starts = (kept_BK // cells[1] * tile[0], kept_BK % cells[1] * tile[1])
        rolled = [
            (rearrange(start, "b k -> b k 1") + offset - shift) % side
            for start, offset, shift, side in zip(starts, offsets, windows.shift, windows.grid, strict=True)
        ]
        row = repeat(rolled[0], "b k i -> b (k i j)", j=tile[1])
        return cls.of_rolled(row, repeat(rolled[1], "b k j -> b (k i j)", i=tile[0]), windows)

    @classmethod
    def of_rolled(cls, row: Tensor, column: Tensor, windows: WindowGrid) -> "_Places":
        """From rows and columns of the rolled grid."""
        high, wide = windows.window
        number = row // high * windows.counts[1] + column // wide
        region = 3 * windows.regions(row, 0) + windows.regions(column, 1)
        return cls(number, row % high, column % wide, region)


def _in_one_group(places: _Places, windows: WindowGrid) -> AttentionPlan:
    def pairs(of_token: Tensor) -> tuple[Tensor, Tensor]:
        return of_token[:, :, None], of_token[:, None, :]

    (window, other_window), (region, other_region) = pairs(places.window), pairs(places.region)
    (row, other_row), (column, other_column) = pairs(places.row), pairs(places.column)
    high, wide = windows.window
    bias_BNN = (row - other_row + high - 1) * (2 * wide - 1) + column - other_column + wide - 1
    penalty_BNN = torch.where(region == other_region, 0.0, OTHER_REGION)
    penalty_BNN = torch.where(window == other_window, penalty_BNN, HIDDEN)
    return AttentionPlan(1, penalty_BNN[:, None], bias_M=bias_BNN.flatten())


def _in_windows(places: _Places, windows: WindowGrid, groups: int) -> AttentionPlan:
    """Windows without a visible token are left out as far as the number of groups allows."""
    batch, tokens = places.window.shape
    size, device, group_BN = math.prod(windows.window), places.window.device, places.window
    if groups < math.prod(windows.counts):
        touched_BV = group_BN.new_zeros(batch, math.prod(windows.counts)).scatter(1, group_BN, 1)
        group_BN = (touched_BV.cumsum(dim=1) - 1).gather(1, group_BN)
    sample_B1 = rearrange(torch.arange(batch, device=device), "b -> b 1")
    place_BN = (sample_B1 * groups + group_BN) * size + places.row * windows.window[1] + places.column
    place_M = place_BN.flatten()
    numbers_M = torch.arange(batch * tokens, device=device)
    token_M = torch.full((batch * groups * size,), batch * tokens, device=device).scatter(0, place_M, numbers_M)
    key_M, padding_M1 = token_M < batch * tokens, None
    region_M = torch.zeros_like(token_M).scatter(0, place_M, places.region.flatten())
    if windows.pads:
        padding_S, region_S = _padding(windows, device)
        padding_M = padding_S.repeat(batch)
        region_M = torch.where(padding_M, region_S.repeat(batch), region_M)
        key_M, padding_M1 = key_M | padding_M, padding_M[:, None]
    penalty = rearrange(torch.where(key_M, 0.0, HIDDEN), "(g k) -> g 1 1 k", k=size)
    if any(windows.shift):
        region_GS = rearrange(region_M, "(g s) -> g s", s=size)
        other = region_GS[:, None, :, None] != region_GS[:, None, None, :]
        penalty = penalty + torch.where(other, OTHER_REGION, 0.0)
    return AttentionPlan(groups, penalty, token_M, place_M, padding_M1)


def _padding(windows: WindowGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each place of each window: whether timm pads the grid there, and its region."""
    high, wide = windows.window
    count = [torch.arange(count, device=device) for count in windows.counts]
    inside = [torch.arange(side, device=device) for side in windows.window]
    row_VS = repeat(count[0][:, None] * high + inside[0], "v i -> (v w i j)", w=len(count[1]), j=wide)
    column_VS = repeat(count[1][:, None] * wide + inside[1], "w j -> (v w i j)", v=len(count[0]), i=high)
    padding = (row_VS >= windows.grid[0]) | (column_VS >= windows.grid[1])
    return padding, _Places.of_rolled(row_VS, column_VS, windows).region


class _Move(torch.autograd.Function):
    """Rows of a matrix in a new order. Each row moves to one place at most, so the gradient is a move back.

    PyTorch's own gradient of a gather adds rows up, which is slower, and on a GPU has no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, source: Tensor, back: Tensor, fills: bool) -> Tensor:
        """`source` is the old number of each new row, `back` the new number of each old row.

        With `fills`, a number in `source` may be that after the last row, which stands for zeros; without, in `back`.
        """
        ctx.save_for_backward(back)
        ctx.fills = not fills
        return _select(rows_MD, source, fills)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return _select(gradients[0], back, ctx.fills), None, None, None


def _select(rows_MD: Tensor, source: Tensor, fills: bool) -> Tensor:
    """Rows by number."""
    if fills:
        rows_MD = torch.cat([rows_MD, rows_MD.new_zeros(1, rows_MD.shape[1])])
    return rows_MD.index_select(0, source)
