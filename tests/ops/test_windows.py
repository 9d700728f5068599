"""Plans of attention in windows among visible tokens.

Shapes: B batch, K visible cells, N visible tokens, M rows, D width, V windows, S places of a window.
"""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from mim.ops import windows as module
from mim.ops.windows import AttentionPlan, WindowGrid, plan_attention

GRIDS = {  # the windows, and cells high and wide
    "windows of 7 over tiles of 4": (WindowGrid((28, 56), (7, 7), (0, 0)), (7, 14)),
    "shifted": (WindowGrid((28, 56), (7, 7), (3, 3)), (7, 14)),
    "windows that are tiles": (WindowGrid((16, 24), (4, 4), (0, 0)), (4, 6)),
    "tiles across four windows": (WindowGrid((16, 24), (4, 4), (2, 2)), (4, 6)),
    "wide windows": (WindowGrid((16, 24), (2, 8), (1, 4)), (4, 6)),
    "padded": (WindowGrid((16, 24), (7, 7), (3, 3)), (4, 6)),
    "one window": (WindowGrid((8, 12), (8, 12), (0, 0)), (4, 6)),
    "one window high": (WindowGrid((8, 24), (8, 6), (0, 3)), (2, 6)),
}
EVERY_GRID = pytest.mark.parametrize("name", GRIDS)


def kept(cells: tuple[int, int], visible: int, batch: int = 3) -> Tensor:
    """Of each sample other cells, in order."""
    numbers = torch.rand(batch, cells[0] * cells[1], generator=torch.Generator().manual_seed(0))
    return numbers.argsort(dim=1)[:, :visible].sort(dim=1).values


def placed_tokens(kept_K: Tensor, cells: tuple[int, int], grid: WindowGrid) -> list[tuple[int, int]]:
    """Row and column in the rolled grid of each token of a sample, one by one."""
    high, wide = (side // count for side, count in zip(grid.grid, cells, strict=True))
    places = []
    for cell in kept_K.tolist():
        for row in range(cell // cells[1] * high, (cell // cells[1] + 1) * high):
            for column in range(cell % cells[1] * wide, (cell % cells[1] + 1) * wide):
                places.append(((row - grid.shift[0]) % grid.grid[0], (column - grid.shift[1]) % grid.grid[1]))
    return places


def window_of(place: tuple[int, int], grid: WindowGrid) -> tuple[int, int]:
    return place[0] // grid.window[0], place[1] // grid.window[1]


@pytest.mark.parametrize("window", [(3, 3), (4, 4), (5, 2), (6, 8)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("visible", [1, 2, 4])
def test_most_windows_is_what_some_cells_touch_at_most(window, shift, visible):
    cells, grid = (2, 3), WindowGrid((8, 12), window, shift)
    touched = [
        len({window_of(place, grid) for place in placed_tokens(torch.tensor(chosen), cells, grid)})
        for chosen in combinations(range(6), visible)
    ]
    most = grid.most_windows(cells, visible)
    assert max(touched) <= most <= grid.counts[0] * grid.counts[1]
    if visible == 1:
        assert most == max(touched)


@EVERY_GRID
def test_plan_lets_a_token_attend_to_the_visible_tokens_of_its_window_alone(name):
    """By the weights of softmax, with 0 for every query, so that each key of a row has the same weight."""
    grid, cells = GRIDS[name]
    kept_BK = kept(cells, 5)
    plan = plan_attention(kept_BK, cells, grid)
    tokens = 5 * (grid.grid[0] // cells[0]) * (grid.grid[1] // cells[1])
    size = plan.penalty.shape[-1]
    eye_MD = torch.eye(tokens, dtype=torch.float64).repeat(3, 1)
    values_GSD = plan.to_places(eye_MD).view(-1, size, tokens)
    weights = (torch.zeros(len(values_GSD), size, size) + plan.penalty[:, 0]).double().softmax(-1)
    seen_BNN = plan.from_places((weights @ values_GSD).flatten(0, 1)).view(3, tokens, tokens)
    for sample in range(3):
        places = placed_tokens(kept_BK[sample], cells, grid)
        edge = [side * count for side, count in zip(grid.window, grid.counts, strict=True)]
        regions = [
            tuple((at >= end - step) if step else False for at, end, step in zip(place, edge, grid.shift, strict=True))
            for place in places
        ]
        together = torch.tensor(
            [
                [window_of(a, grid) == window_of(b, grid) and p == q for b, q in zip(places, regions, strict=True)]
                for a, p in zip(places, regions, strict=True)
            ]
        )
        assert torch.equal(seen_BNN[sample] > 1e-30, together)


@EVERY_GRID
def test_plans_of_windows_and_of_one_group_agree(name):
    grid, cells = GRIDS[name]
    places = module._Places.of_kept(kept(cells, 5), cells, grid)
    plans = [
        module._in_windows(places, grid, grid.counts[0] * grid.counts[1]),
        module._in_windows(places, grid, grid.counts[0] * grid.counts[1] if grid.pads else grid.most_windows(cells, 5)),
        *([] if grid.pads else [module._in_one_group(places, grid)]),
    ]
    first, *others = [attend(plan, grid, 3 * places.window.shape[1]) for plan in plans]
    assert first.std() > 0.1
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


def attend(plan: AttentionPlan, grid: WindowGrid, tokens: int) -> Tensor:
    """Of tokens of noise, with biases of noise."""
    generator = torch.Generator().manual_seed(1)
    (high, wide), size = grid.window, plan.penalty.shape[-1]
    table = torch.randn((2 * high - 1) * (2 * wide - 1), 2, generator=generator, dtype=torch.float64)
    rows = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(high), torch.arange(wide))
    distances = places[:, None] - places[None] + torch.tensor([high - 1, wide - 1])
    bias = plan.biases(table, distances[..., 0] * (2 * wide - 1) + distances[..., 1])
    query, key, value = plan.to_places(rows).view(-1, size, 3, 2, 1).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) + bias + plan.penalty).softmax(-1)
    return plan.from_places((weights @ value).transpose(1, 2).reshape(-1, 2))


@pytest.mark.parametrize(
    ("grid", "cells", "visible", "groups", "size"),
    [
        (WindowGrid((56, 56), (7, 7), (0, 0)), (7, 7), 12, 48, 49),  # Swin-T at 224 px: each cell touches 2 x 2 windows
        (WindowGrid((56, 56), (7, 7), (3, 3)), (7, 7), 12, 48, 49),
        (WindowGrid((28, 28), (7, 7), (3, 3)), (7, 7), 12, 1, 192),
        (WindowGrid((14, 14), (7, 7), (3, 3)), (7, 7), 12, 1, 48),
        (WindowGrid((7, 7), (7, 7), (0, 0)), (7, 7), 12, 1, 12),
        (WindowGrid((64, 64), (8, 8), (0, 0)), (8, 8), 16, 16, 64),  # windows that are cells
        (WindowGrid((64, 64), (8, 8), (4, 4)), (8, 8), 16, 64, 64),
    ],
)
def test_plan_takes_what_has_fewer_scores(grid, cells, visible, groups, size):
    plan = plan_attention(kept(cells, visible), cells, grid)
    assert (plan.groups, plan.penalty.shape[-1]) == (groups, size)
    assert (plan.token_M is None) == (groups == 1)


@EVERY_GRID
def test_moving_tokens_to_places_and_back_has_the_gradients_of_gathering(name):
    grid, cells = GRIDS[name]
    places = module._Places.of_kept(kept(cells, 2, batch=2), cells, grid)
    plan = module._in_windows(places, grid, grid.counts[0] * grid.counts[1])
    rows = torch.randn(places.window.numel(), 2, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(len(plan.token_M), 2, dtype=torch.float64, requires_grad=True)
    moved = plan.from_places(plan.to_places(rows) * scale)
    assert torch.equal(plan.from_places(plan.to_places(rows)), rows)
    moved.square().sum().backward()
    gathered = scale.detach()[plan.place_M].requires_grad_()
    (rows.detach().requires_grad_() * gathered).square().sum().backward()
    assert torch.allclose(rows.grad, 2 * rows.detach() * gathered.detach() ** 2)
    expected = torch.zeros_like(scale)
    expected[plan.place_M] = gathered.grad
    assert torch.allclose(scale.grad, expected)


@EVERY_GRID
def test_plan_needs_no_value_of_the_mask(name):
    """On the meta device there are none, so that a plan has static shapes and no host sync."""
    grid, cells = GRIDS[name]
    meta, real = (plan_attention(kept(cells, 5).to(device), cells, grid) for device in ("meta", "cpu"))
    assert meta.penalty.device.type == "meta"
    assert meta.penalty.shape == real.penalty.shape
