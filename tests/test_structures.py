from dataclasses import replace

import pytest
import torch

from mim.structures import Features, ImageSpec, PatchMask


def random_mask(batch=3, height=4, width=6, visible=9, seed=0) -> PatchMask:
    """A mask with the same number of visible cells in every sample, made by loops."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.ones(batch, height, width, dtype=torch.bool)
    for sample in range(batch):
        for cell in torch.randperm(height * width, generator=generator)[:visible].tolist():
            hidden[sample, cell // width, cell % width] = False
    return PatchMask(hidden, visible)


def test_image_grid_counts_rows_and_columns():
    assert ImageSpec(3, 96, 160).grid(16, "KEY") == (6, 10)


@pytest.mark.parametrize(("height", "width", "axis"), [(40, 32, "height 40"), (32, 40, "width 40")])
def test_image_grid_names_the_axis_that_does_not_divide_and_sizes_that_do(height, width, axis):
    with pytest.raises(ValueError, match=f"KEY 16 does not divide the image {axis}.*32 or 48"):
        ImageSpec(3, height, width).grid(16, "KEY")


def test_image_grid_says_what_can_be_changed():
    with pytest.raises(ValueError, match=r"^KEY 16 .* use a height of 32 or 48, or another KEY$"):
        ImageSpec(3, 40, 32).grid(16, "KEY")
    with pytest.raises(ValueError, match=r"^the stride 16 .* use a height of 32 or 48, or another encoder$"):
        ImageSpec(3, 40, 32).grid(16, "the stride", "another encoder")
    with pytest.raises(ValueError, match="at most 16,777,216 are allowed: use larger cells, or smaller images"):
        ImageSpec(3, 8192, 8192).grid(1, "KEY")


def test_image_grid_refuses_a_cell_below_one_pixel():
    with pytest.raises(ValueError, match="KEY is 0"):
        ImageSpec(3, 32, 32).grid(0, "KEY")


def test_mask_at_its_own_grid_is_itself():
    mask = random_mask()
    assert torch.equal(mask.at(4, 6), mask.hidden_BHW)


@pytest.mark.parametrize(("high", "wide"), [(2, 2), (1, 3), (4, 1)])
def test_mask_at_a_finer_grid_repeats_cells(high, wide):
    mask = random_mask()
    fine = mask.at(4 * high, 6 * wide)
    assert fine.shape == (3, 4 * high, 6 * wide)
    for row in range(4 * high):
        for column in range(6 * wide):
            assert torch.equal(fine[:, row, column], mask.hidden_BHW[:, row // high, column // wide])


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 2), (1, 1)])
def test_mask_at_a_coarser_grid_hides_a_cell_when_any_part_of_it_is_hidden(height, width):
    mask = random_mask(visible=18)
    coarse = mask.at(height, width)
    high, wide = 4 // height, 6 // width
    for sample in range(3):
        for row in range(height):
            for column in range(width):
                part = mask.hidden_BHW[sample, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                assert coarse[sample, row, column] == any(part.flatten().tolist())


def test_mask_at_finer_then_coarser_is_the_same_mask():
    mask = random_mask()
    assert torch.equal(PatchMask(mask.at(32, 48)).at(4, 6), mask.hidden_BHW)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 7), (3, 6), (8, 3), (2, 12)])
def test_mask_at_a_grid_that_does_not_divide_is_refused(height, width):
    with pytest.raises(ValueError, match=f"4x6 cells does not fit a grid of {height}x{width}"):
        random_mask().at(height, width)


@pytest.mark.parametrize("finer", [1, 2, 3])
def test_mask_kept_lists_the_visible_tokens_in_row_major_order(finer):
    mask = random_mask()
    height, width = 4 * finer, 6 * finer
    indices = mask.kept_indices(height, width)
    hidden = mask.hidden_BHW
    for sample in range(3):
        expected = [
            row * width + column
            for row in range(height)
            for column in range(width)
            if not hidden[sample, row // finer, column // finer]
        ]
        assert indices[sample].tolist() == expected
    assert indices.dtype == torch.int64


def test_mask_kept_needs_one_count_for_the_batch():
    hidden = torch.zeros(2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0] = hidden[1, 0] = True
    mask = PatchMask.from_tensor(hidden, 2)
    with pytest.raises(ValueError, match="equal counts"):
        mask.kept_indices(2, 2)


def test_mask_kept_on_a_grid_coarser_than_the_mask_is_refused():
    with pytest.raises(ValueError, match="no finer than"):
        random_mask().kept_indices(2, 3)


def test_mask_kept_on_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        random_mask().kept_indices(6, 6)


def test_mask_given_one_grid_serves_every_sample():
    hidden = random_mask(batch=1).hidden_BHW[0]
    mask = PatchMask.from_tensor(hidden, 5)
    assert mask.visible == 9
    assert torch.equal(mask.hidden_BHW, torch.stack([hidden] * 5))


def test_mask_given_a_grid_a_sample_keeps_each_and_counts_the_visible_cells():
    hidden = random_mask(visible=7).hidden_BHW
    mask = PatchMask.from_tensor(hidden, 3)
    assert mask.visible == 7
    assert torch.equal(mask.hidden_BHW, hidden)


def test_mask_given_uneven_counts_has_no_common_one():
    hidden = torch.cat([random_mask(1, visible=7).hidden_BHW, random_mask(1, visible=8).hidden_BHW])
    assert PatchMask.from_tensor(hidden, 2).visible is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_mask_given_refuses_another_type(dtype):
    with pytest.raises(ValueError, match=f"True where hidden, not {dtype}"):
        PatchMask.from_tensor(torch.eye(4, dtype=dtype), 2)


@pytest.mark.parametrize("shape", [(24,), (3, 4, 6), (2, 1, 4, 6)])
def test_mask_given_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"\(H, W\) or \(2, H, W\)"):
        PatchMask.from_tensor(torch.ones(shape, dtype=torch.bool), 2)


@pytest.mark.parametrize("value", [True, False])
def test_mask_given_refuses_a_sample_with_nothing_hidden_or_nothing_visible(value):
    hidden = random_mask(2).hidden_BHW
    hidden[1] = value
    with pytest.raises(ValueError, match="hide at least one cell of every sample and leave at least one visible"):
        PatchMask.from_tensor(hidden, 2)


def test_mask_rows_are_the_samples_asked_for():
    mask = random_mask(batch=5)
    rows = mask.rows(1, 4)
    assert rows.visible == mask.visible
    assert torch.equal(rows.hidden_BHW, mask.hidden_BHW[[1, 2, 3]])


def chosen_mask() -> PatchMask:
    """A mask that says which hidden cells are to be predicted, with all its fields."""
    mask = random_mask(batch=5, visible=21)
    return replace(mask, draw_B=torch.arange(5), predicted_BHW=mask.hidden_BHW & (torch.arange(6) < 4))


def test_mask_keeps_all_its_fields_for_some_samples():
    mask = chosen_mask()
    for part, rows in (
        (mask.rows(1, 3), [1, 2]),
        (mask.samples([4, 0]), [4, 0]),
        (mask.samples(torch.tensor([3])), [3]),
        (mask.to(torch.device("cpu")), range(5)),
    ):
        assert part.visible == mask.visible
        for name in ("hidden_BHW", "draw_B", "predicted_BHW"):
            assert torch.equal(getattr(part, name), getattr(mask, name)[list(rows)])


def test_mask_of_which_all_hidden_cells_count_says_so_for_some_samples():
    mask = random_mask(batch=5)
    assert mask.rows(1, 3).predicted_BHW is mask.samples([1]).draw_B is None
    assert torch.equal(mask.predicted_at(8, 12), mask.at(8, 12))


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 6), (8, 18)])
def test_mask_predicted_cells_on_another_grid_are_those_of_a_mask_that_hides_them(height, width):
    mask = chosen_mask()
    expected = PatchMask(mask.predicted_BHW).at(height, width)
    assert torch.equal(mask.predicted_at(height, width), expected)
    coarse = mask.coarsened(height, width)
    if height == 2:
        assert torch.equal(coarse.predicted_BHW, expected)
        assert torch.equal(coarse.draw_B, mask.draw_B)
    else:
        assert coarse is mask


def test_mask_coarse_counts_visible_cells_anew():
    pixels = torch.zeros(1, 4, 4, dtype=torch.bool)
    pixels[0, 0, 0] = pixels[0, 1, 1] = pixels[0, 3, 3] = True  # two of the four larger cells
    coarse = PatchMask.from_tensor(pixels, 1).coarsened(2, 2)
    assert coarse.hidden_BHW.tolist() == [[[True, False], [False, True]]]
    assert coarse.visible == 2


def test_mask_coarse_leaves_an_equal_or_finer_grid_alone():
    mask = random_mask()
    assert mask.coarsened(4, 6) is mask
    assert mask.coarsened(8, 12) is mask


def features(prefix: int | None = 2) -> Features:
    """Eight tokens of width 3 of two images, and class token and registers in front of them."""
    generator = torch.Generator().manual_seed(0)
    prefix_BKD = None if prefix is None else torch.randn(2, prefix, 3, generator=generator)
    return Features(torch.randn(2, 8, 3, generator=generator), (2, 4), prefix_BKD=prefix_BKD)


def test_pooled_mean_leaves_the_prefix_out():
    inputs = features()
    by_hand = sum(inputs.tokens_BND[:, position] for position in range(8)) / 8
    torch.testing.assert_close(inputs.pooled("mean"), by_hand)
    without = Features(inputs.tokens_BND, inputs.grid)
    assert torch.equal(without.pooled("mean"), inputs.pooled("mean"))


def test_pooled_class_is_the_first_of_the_prefix_and_no_register():
    inputs = features()
    assert torch.equal(inputs.pooled("class"), inputs.prefix_BKD[:, 0])
    assert not torch.equal(inputs.pooled("class"), inputs.prefix_BKD[:, 1])


def test_pooled_both_is_the_mean_and_then_the_class_token():
    inputs = features()
    assert torch.equal(inputs.pooled("both")[:, :3], inputs.pooled("mean"))
    assert torch.equal(inputs.pooled("both")[:, 3:], inputs.pooled("class"))
    assert inputs.pooled("both").shape == (2, 6)


@pytest.mark.parametrize("pool", ["class", "both"])
def test_pooled_without_a_class_token_names_the_pool_that_is_possible(pool):
    with pytest.raises(ValueError, match=f"pool {pool}: this encoder has no class token; use mean"):
        features(None).pooled(pool)
