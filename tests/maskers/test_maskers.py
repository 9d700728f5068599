import math
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_models import CPU, generator, members

from mim.maskers import Masker
from mim.maskers.base import smallest, visible_cells
from mim.maskers.block import Block
from mim.maskers.grid import Grid
from mim.maskers.inverse_block import InverseBlock
from mim.maskers.multi_block import MultiBlock
from mim.maskers.random import Random
from mim.registry import keys_of
from mim.structures import ImageSpec

ALL = members(Masker)
RANDOM = {name: part for name, part in ALL.items() if name != "grid"}  # the grid is the one pattern that never changes
WITH_RATIO = {name: part for name, part in ALL.items() if "ratio" in keys_of(part)}


def square(cells: int) -> ImageSpec:
    return ImageSpec(3, 16 * cells, 16 * cells)


def make(name: str, image: ImageSpec, **keys) -> Masker:
    allowed = keys_of(ALL[name])
    return ALL[name](image, **{key: value for key, value in keys.items() if key in allowed})


def per_cell(part, image, **keys):
    """Hidden cells of 400 samples, by place."""
    return part(image, **keys).sample(400, generator(0), CPU).hidden_BHW


# ---------------------------------------------------------------- every masker


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 32), (32, 32)])
def test_masker_leaves_exactly_its_count_visible_in_every_sample(name, size):
    masker = make(name, ImageSpec(3, *size), cell=16, ratio=0.6)
    mask = masker.sample(64, generator(1), CPU)
    assert mask.hidden_BHW.dtype == torch.bool
    assert mask.hidden_BHW.shape == (64, size[0] // 16, size[1] // 16)
    assert mask.visible == masker.visible
    assert 0 < masker.visible < masker.cells
    assert (~mask.hidden_BHW).sum(dim=(1, 2)).tolist() == [masker.visible] * 64
    assert masker.ratio == pytest.approx(mask.hidden_BHW.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_masker_hides_missing_cells_first_and_keeps_its_count(name):
    masker = make(name, ImageSpec(3, 96, 160), cell=16, ratio=0.6)
    mask = masker.sample(64, generator(1), CPU)
    pixels_BHW = torch.zeros(64, 96, 160, dtype=torch.bool)
    unchanged = masker.hide_missing(mask.with_missing(pixels_BHW))
    assert torch.equal(unchanged.hidden_BHW, mask.hidden_BHW)
    pixels_BHW[:32, 0, :160:16] = True  # a pixel of each cell of the first row
    pixels_BHW[32:, :95] = True  # more than it can hide
    missing = masker.hide_missing(mask.with_missing(pixels_BHW))
    assert (~missing.hidden_BHW).sum(dim=(1, 2)).tolist() == [masker.visible] * 64
    assert missing.hidden_BHW[:32, 0].all()
    as_before = missing.hidden_BHW | ~mask.hidden_BHW  # a hidden cell becomes visible only where another is hidden
    swaps_B = (~as_before).sum(dim=(1, 2))
    assert torch.equal(swaps_B[:32], (~mask.hidden_BHW[:32, 0]).sum(dim=1))
    assert missing.missing_BHW[32:].all()
    if missing.predicted_BHW is not None:
        assert not (missing.predicted_BHW & ~missing.hidden_BHW).any()


@pytest.mark.parametrize("name", ALL)
def test_masker_draws_from_the_generator_alone(name):
    masker = make(name, ImageSpec(3, 96, 160), cell=16)
    before = torch.get_rng_state()
    first = masker.sample(16, generator(3), CPU).hidden_BHW
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(masker.sample(16, generator(3), CPU).hidden_BHW, first)


@pytest.mark.parametrize("name", RANDOM)
def test_masker_differs_by_seed_and_by_sample(name):
    masker = make(name, square(8), cell=16, ratio=0.5)
    first, second = (masker.sample(16, generator(seed), CPU).hidden_BHW for seed in (3, 4))
    assert (first != second).any(dim=(1, 2)).float().mean() > 0.9
    assert len({tuple(sample.flatten().tolist()) for sample in first}) > 14


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("size", "axis"), [((40, 32), "height 40"), ((32, 40), "width 40")])
def test_masker_names_the_axis_that_its_cell_does_not_divide(name, size, axis):
    with pytest.raises(ValueError, match=rf"MASKER\.cell 16 does not divide the image {axis}"):
        make(name, ImageSpec(3, *size), cell=16)


@pytest.mark.parametrize("name", WITH_RATIO)
@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan])
def test_masker_refuses_a_ratio_outside_zero_to_one(name, ratio):
    with pytest.raises(ValueError, match=rf"MASKER\.ratio is {ratio}: it must lie between 0 and 1"):
        make(name, square(4), cell=16, ratio=ratio)


@pytest.mark.parametrize("name", WITH_RATIO)
@pytest.mark.parametrize(
    ("ratio", "rounding", "visible"),
    [(0.9, "floor_visible", 0), (0.95, "ceil_hidden", 0), (1e-17, "floor_visible", 4), (0.2, "floor_hidden", 4)],
)
def test_masker_refuses_a_ratio_that_rounds_to_nothing(name, ratio, rounding, visible):
    with pytest.raises(ValueError, match=rf"of 4 cells leaves {visible} visible.*MASKER\.cell"):
        make(name, square(2), cell=16, ratio=ratio, rounding=rounding)


# ---------------------------------------------------------------- rounding


def test_visible_cells_round_as_mae_and_as_simmim():
    differ = 0
    for cells in [*range(2, 120), 196, 256, 576, 1024]:
        for percent in range(1, 100):
            ratio = percent / 100
            visible, hidden = int(cells * (1 - ratio)), math.ceil(cells * ratio)
            if 0 < visible < cells:
                assert visible_cells(cells, ratio, "floor_visible") == visible
            if 0 < hidden < cells:
                assert visible_cells(cells, ratio, "ceil_hidden") == cells - hidden
            differ += visible != cells - hidden
    assert differ > 0


@pytest.mark.parametrize(("cells", "ratio", "hidden"), [(9, 0.75, 6), (64, 0.75, 48), (100, 0.29, 28), (7, 0.5, 3)])
def test_visible_cells_of_floor_hidden_hide_as_vit_pytorch(cells, ratio, hidden):
    """mae.py: int(ratio * cells); .29 of 100 is 28.999999999999996."""
    assert visible_cells(cells, ratio, "floor_hidden") == cells - hidden == cells - int(ratio * cells)


@pytest.mark.parametrize("part", [Random, Block])
def test_maskers_differ_between_roundings_where_the_originals_do(part):
    assert int(100 * (1 - 0.9)) == 9  # what MAE's code gives: 0.1 is not a binary number
    assert math.ceil(100 * 0.9) == 90
    for rounding, hidden in (("floor_visible", 91), ("ceil_hidden", 90)):
        mask = part(square(10), cell=16, ratio=0.9, rounding=rounding).sample(4, generator(0), CPU)
        assert mask.hidden_BHW.sum(dim=(1, 2)).tolist() == [hidden] * 4


def test_smallest_marks_that_many_of_each_row_with_ties_in_order():
    score = torch.tensor([[3.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert smallest(score, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    by_row = smallest(score, torch.tensor([[0], [3]]))
    assert by_row.tolist() == [[False] * 4, [True, True, True, False]]


# ---------------------------------------------------------------- random


@pytest.mark.parametrize(("size", "ratio"), [((64, 96), 0.75), ((96, 64), 0.6)])
def test_random_hides_every_cell_equally_often(size, ratio):
    samples = 2000
    masker = Random(ImageSpec(3, *size), cell=16, ratio=ratio)
    frequency = masker.sample(samples, generator(0), CPU).hidden_BHW.double().mean(dim=0)
    sigma = math.sqrt(masker.ratio * (1 - masker.ratio) / samples)
    assert ((frequency - masker.ratio).abs() < 5 * sigma).all()


def test_random_draws_every_set_of_cells_equally_often():
    masker = Random(square(2), cell=16, ratio=0.5)
    hidden_BN = masker.sample(6000, generator(0), CPU).hidden_BHW.flatten(1)
    counts = Counter(tuple(row) for row in hidden_BN.tolist())
    assert len(counts) == 6
    sigma = math.sqrt(6000 * (1 / 6) * (5 / 6))
    assert all(abs(count - 1000) < 5 * sigma for count in counts.values())


# ---------------------------------------------------------------- block


def hidden_neighbours(hidden_BHW):
    """Mean number of hidden cells among the four neighbours of a hidden cell."""
    padded = torch.nn.functional.pad(hidden_BHW.float(), (1, 1, 1, 1))
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return around[hidden_BHW].mean().item()


def regions(hidden_BHW):
    """Mean number of connected hidden regions of a sample."""
    return sum(ndimage.label(sample.numpy())[1] for sample in hidden_BHW) / len(hidden_BHW)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6, 0.75])
def test_block_hides_connected_rectangles_rather_than_noise(ratio):
    block, noise = (per_cell(part, square(14), cell=16, ratio=ratio) for part in (Block, Random))
    expected = 4 * ratio * 13 / 14  # of noise: four neighbours, fewer at the border
    assert hidden_neighbours(noise) == pytest.approx(expected, rel=0.05)
    assert hidden_neighbours(block) > expected + 0.35 * (4 - expected)
    assert regions(block) < 4.5
    if ratio < 0.6:  # noise joins up by itself above the percolation threshold
        assert regions(block) < regions(noise) / 4


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (64, 256)])
def test_block_hits_the_exact_count(ratio, size):
    masker = Block(ImageSpec(1, *size), cell=16, ratio=ratio)
    mask = masker.sample(100, generator(2), CPU).hidden_BHW
    cells = size[0] * size[1] // 256
    assert mask.sum(dim=(1, 2)).tolist() == [cells - int(cells * (1 - ratio))] * 100


def test_block_of_one_small_area_is_mostly_one_rectangle():
    hidden = per_cell(Block, square(14), cell=16, ratio=16 / 196, rounding="ceil_hidden", max_aspect=1.0)
    rectangles = 0
    for sample in hidden:
        rows, columns = sample.any(dim=1).sum().item(), sample.any(dim=0).sum().item()
        rectangles += (rows, columns) == (4, 4)
    assert rectangles == len(hidden)


def test_block_reaches_every_cell():
    frequency = per_cell(Block, ImageSpec(3, 96, 160), cell=16, ratio=0.4).float().mean(dim=0)
    assert frequency.min() > 0.05
    assert frequency.max() < 0.9


def beits_mask(chance, side, count):
    """One mask of side x side cells as BEiT draws it: at most `count` hidden. Source: masking_generator.py."""
    hidden = np.zeros((side, side), dtype=bool)
    while hidden.sum() < count:
        most = count - int(hidden.sum())
        for _ in range(10):
            area, aspect = chance.uniform(16, most), math.exp(chance.uniform(math.log(0.3), -math.log(0.3)))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if high < side and wide < side:
                top, left = chance.randint(0, side - high), chance.randint(0, side - wide)
                part = hidden[top : top + high, left : left + wide]
                if 0 < (~part).sum() <= most:
                    part[:] = True
                    break
        else:
            break
    return hidden


def test_block_hides_what_beit_hides_but_for_the_exact_count():
    chance = random.Random(0)
    theirs = torch.from_numpy(np.stack([beits_mask(chance, 14, 75) for _ in range(2000)]))
    masker = Block(square(14), cell=16, ratio=75 / 196, rounding="ceil_hidden")
    ours = masker.sample(2000, generator(0), CPU).hidden_BHW
    for mask in (theirs, ours):
        assert mask[:, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean().item() == pytest.approx(0.043, abs=0.007)
        assert regions(mask) == pytest.approx(1.42, abs=0.08)  # noise of as many cells has 17
        whole = (mask.all(dim=1).sum(dim=1) + mask.all(dim=2).sum(dim=1)).float().mean().item() / 28
        assert whole == pytest.approx(0.0045, abs=0.0015)  # rows and columns without a visible cell
    assert theirs.sum(dim=(1, 2)).float().mean() > 74  # so that the rest, which ours adds, is little


@pytest.mark.parametrize(("key", "value"), [("min_cells", 0), ("max_aspect", 0.5)])
def test_block_refuses_what_makes_no_rectangle(key, value):
    with pytest.raises(ValueError, match=rf"MASKER\.{key} is {value}: it must be at least 1"):
        Block(square(8), cell=16, **{key: value})


# ---------------------------------------------------------------- inverse block


def data2vecs_visible(chance, side, ratio, block, adjust):
    """Visible cells of one mask. Source: data2vec 2.0, compute_block_mask_2d with inverse_mask."""
    cells, visible = side**2, np.zeros((side, side), dtype=bool)
    for centre in chance.choices(range(cells), k=int(cells * ((1 - ratio + adjust) / block**2))):
        for row, column in product(range(block), repeat=2):
            place = (centre // side + row - block // 2, centre % side + column - block // 2)
            visible[tuple(min(max(each, 0), side - 1) for each in place)] = True
    target = int(cells * (1 - ratio))
    while visible.sum() != target:
        more = visible.sum() < target
        visible.flat[chance.choice(np.flatnonzero(visible != more))] = more
    return visible


@pytest.mark.parametrize("block", [2, 3, 4])
def test_inverse_block_keeps_what_data2vec_keeps(block):
    """Clamped at the border, a block of an even side is larger there; that changes single cells alone."""
    chance = random.Random(0)
    theirs = torch.from_numpy(np.stack([data2vecs_visible(chance, 14, 0.8, block, 0.07) for _ in range(1500)]))
    ours = ~InverseBlock(square(14), cell=16, ratio=0.8, block=block).sample(1500, generator(0), CPU).hidden_BHW
    assert ours.sum(dim=(1, 2)).unique().tolist() == theirs.sum(dim=(1, 2)).unique().tolist() == [39]
    assert hidden_neighbours(ours) == pytest.approx(hidden_neighbours(theirs), abs=0.03)
    assert regions(ours) == pytest.approx(regions(theirs), rel=0.05)
    border = torch.ones(14, 14, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    share = [each[:, border].float().mean().item() for each in (ours, theirs)]
    assert share[0] == pytest.approx(share[1], abs=0.01)


@pytest.mark.parametrize(("key", "value"), [("block", 0), ("adjust", -0.1)])
def test_inverse_block_refuses_by_key_and_value(key, value):
    with pytest.raises(ValueError, match=rf"MASKER\.{key} is {value}: it must be at least"):
        InverseBlock(square(8), cell=16, **{key: value})


# ---------------------------------------------------------------- multi block


def jepas_blocks(chance, side):
    """Cells of the four targets and of the context of one mask. Source: I-JEPA, section 3 and src/masks/multiblock.py;
    each block with its own size, anywhere in the grid.
    """

    def block(scale, aspect):
        cells, ratio = int(side**2 * chance.uniform(*scale)), chance.uniform(*aspect)
        high, wide = (min(round(math.sqrt(area)), side - 1) for area in (cells * ratio, cells / ratio))
        inside = np.zeros((side, side), dtype=bool)
        top, left = chance.randint(0, side - high), chance.randint(0, side - wide)
        inside[top : top + high, left : left + wide] = True
        return inside

    targets = np.stack([block((0.15, 0.2), (0.75, 1.5)) for _ in range(4)])
    return targets.any(axis=0), block((0.85, 1.0), (1.0, 1.0))


def test_multi_block_hides_and_predicts_as_a_loop_does():
    chance = random.Random(0)
    drawn = [jepas_blocks(chance, 14) for _ in range(2000)]
    targets, contexts = (torch.from_numpy(np.stack([each[part] for each in drawn])) for part in (0, 1))
    mask = MultiBlock(square(14), cell=16).sample(2000, generator(0), CPU)
    visible = ~mask.hidden_BHW
    assert visible.sum(dim=(1, 2)).tolist() == [49] * 2000
    enough = (contexts & ~targets).sum(dim=(1, 2)) >= 49
    assert enough.float().mean() > 0.97  # so that hidden targets are all targets
    rest = contexts & ~targets
    expected = rest * (49 / rest.sum(dim=(1, 2), keepdim=True)).clamp(max=1)  # 49 of these cells at random
    for ours, theirs in ((mask.predicted_BHW, targets), (visible, expected)):
        difference = ours.float().mean(dim=0) - theirs.float().mean(dim=0)
        assert difference.abs().max() < 5 * 0.5 * (2 / 2000) ** 0.5  # standard deviations of a share
        assert difference.mean().abs() < 0.005
    assert hidden_neighbours(mask.predicted_BHW) == pytest.approx(hidden_neighbours(targets), abs=0.02)
    assert regions(mask.predicted_BHW) == pytest.approx(regions(targets), abs=0.05)
    spread = [each.sum(dim=(1, 2)).float().std().item() for each in (mask.predicted_BHW, targets)]
    assert spread[0] == pytest.approx(spread[1], rel=0.06)  # by how much targets overlap


@pytest.mark.parametrize("ratio", [0.4, 0.74, 0.9])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 32), (16, 192)])
def test_multi_block_predicts_hidden_cells_and_one_in_each_sample_at_least(size, ratio):
    mask = MultiBlock(ImageSpec(3, *size), cell=16, ratio=ratio).sample(200, generator(1), CPU)
    assert not (mask.predicted_BHW & ~mask.hidden_BHW).any()
    assert mask.predicted_BHW.any(dim=1).any(dim=1).all()


def test_multi_block_of_one_target_is_one_rectangle_of_its_area_and_aspect():
    masker = MultiBlock(square(20), cell=16, targets=1, target_scale=(0.1, 0.12), target_aspect=(1.0, 2.0))
    predicted = masker.sample(2000, generator(0), CPU).predicted_BHW
    high, wide = predicted.any(dim=2).sum(dim=1), predicted.any(dim=1).sum(dim=1)
    assert torch.equal(predicted.sum(dim=(1, 2)), high * wide)
    possible = {
        (round(math.sqrt(cells * aspect / 100)), round(math.sqrt(cells / aspect * 100)))
        for cells, aspect in product(range(40, 48), range(100, 200))
    }
    shapes = set(zip(high.tolist(), wide.tolist(), strict=True))
    assert shapes <= possible
    assert len(shapes) > 0.8 * len(possible)
    assert (high * wide).float().mean().item() == pytest.approx(43.5, abs=0.6)
    assert (high / wide).mean().item() == pytest.approx(1.5, abs=0.03)


def test_multi_block_keeps_cells_of_targets_only_where_no_others_are_left():
    mask = MultiBlock(square(14), cell=16, ratio=0.2).sample(100, generator(0), CPU)
    assert not (mask.hidden_BHW & ~mask.predicted_BHW).any()  # 39 cells are hidden, and targets cover more
    assert (mask.predicted_BHW.sum(dim=(1, 2)) == 196 - int(196 * 0.8)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"targets": 0}, r"MASKER\.targets is 0: it must be at least 1"),
        ({"target_scale": (0.2, 0.1)}, r"MASKER\.target_scale is \[0\.2, 0\.1\]: .* above 0, at most 1, the"),
        ({"context_scale": (0.5, 1.5)}, r"MASKER\.context_scale is \[0\.5, 1\.5\]"),
        (
            {"target_aspect": (0.0, 1.5)},
            r"MASKER\.target_aspect is \[0\.0, 1\.5\]: .* above 0, the smaller",
        ),
    ],
)
def test_multi_block_refuses_by_key_and_value(keys, named):
    with pytest.raises(ValueError, match=named):
        MultiBlock(square(8), cell=16, **keys)


# ---------------------------------------------------------------- grid


def grid_visible(image, **keys):
    visible = ~Grid(image, cell=16, **keys).sample(2, None, CPU).hidden_BHW
    assert torch.equal(visible[0], visible[1])
    return visible[0]


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_grid_keeps_one_cell_of_each_two_by_two(size):
    visible = grid_visible(ImageSpec(3, *size))
    for row in range(visible.shape[0]):
        for column in range(visible.shape[1]):
            assert visible[row, column] == (row % 2 == 0 and column % 2 == 0)


@pytest.mark.parametrize(("one_of", "high", "wide"), [(4, 2, 2), (6, 2, 3), (8, 2, 4), (9, 3, 3), (16, 4, 4)])
def test_grid_keeps_exactly_one_cell_of_every_rectangle(one_of, high, wide):
    visible = grid_visible(ImageSpec(3, 16 * high * 3, 16 * wide * 2), one_of=one_of)
    tiles = visible.reshape(3, high, 2, wide).sum(dim=(1, 3))
    assert (tiles == 1).all()


@pytest.mark.parametrize("one_of", [2, 3, 5, 7])
def test_grid_of_a_prime_keeps_one_of_n_in_every_row_and_column(one_of):
    visible = grid_visible(ImageSpec(3, 32 * one_of, 48 * one_of), one_of=one_of)
    assert (visible.sum(dim=1) == 3).all()
    assert (visible.sum(dim=0) == 2).all()


def test_grid_of_two_is_a_checkerboard():
    visible = grid_visible(square(4), one_of=2)
    assert (visible[:, 1:] != visible[:, :-1]).all()
    assert (visible[1:] != visible[:-1]).all()


@pytest.mark.parametrize("one_of", [1, 0, 17])
def test_grid_refuses_a_share_that_hides_nothing_or_has_no_cell(one_of):
    with pytest.raises(ValueError, match=rf"MASKER\.one_of is {one_of}: it must lie between 2 and the 16 cells"):
        Grid(square(4), cell=16, one_of=one_of)
