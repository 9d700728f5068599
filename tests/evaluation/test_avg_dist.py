"""AvgDist: distances equal scipy's transform, on every mask, image shape and cell."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.stats import t as student
from small_models import CPU, generator, members

from mim.evaluation import avg_dist as module
from mim.evaluation.avg_dist import avg_dist, masker_avg_dist, pixel_distances
from mim.maskers import Block, Grid, Masker, Random
from mim.registry import keys_of
from mim.structures import ImageSpec, PatchMask


def reference(hidden_BHW: torch.Tensor) -> np.ndarray:
    return np.stack([distance_transform_edt(hidden_HW) for hidden_HW in hidden_BHW.cpu().numpy()])


def check(mask: PatchMask, height: int, width: int) -> None:
    """Distances equal scipy's, and AvgDist is their mean over hidden pixels."""
    hidden_BHW, distances_BHW = mask.at(height, width), pixel_distances(mask, height, width)
    expected_BHW = reference(hidden_BHW)
    assert distances_BHW.shape == hidden_BHW.shape
    assert distances_BHW.dtype == torch.float32
    np.testing.assert_allclose(distances_BHW.numpy(), expected_BHW, rtol=0, atol=1e-5)
    assert torch.equal(distances_BHW > 0, hidden_BHW)
    means = [expected_HW[hidden_HW].mean() for expected_HW, hidden_HW in zip(expected_BHW, hidden_BHW, strict=True)]
    np.testing.assert_allclose(avg_dist(mask, height, width).numpy(), means, rtol=1e-6)


@pytest.mark.parametrize("name", members(Masker))
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize("cell", [1, 2, 4, 8, 16, 32])
def test_distances_equal_scipys_for_every_masker(name, height, width, cell):
    part = Masker.named(name)
    ratios = [0.4, 0.6] if "ratio" in keys_of(part) else [None]
    for ratio in ratios:
        masker = part(ImageSpec(3, height, width), cell=cell, **({} if ratio is None else {"ratio": ratio}))
        check(masker.sample(4, generator(cell), CPU), height, width)


@pytest.mark.parametrize(("height", "width"), [(1, 9), (9, 1), (23, 23), (17, 40), (40, 17)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_distances_equal_scipys_on_pixel_maps(height, width, share):
    """Also where whole rows and columns are hidden, and at sides that no cell divides."""
    hidden_BHW = torch.rand(12, height, width, generator=generator(height)) < share
    hidden_BHW[:, 0, 0], hidden_BHW[:, height // 2, width // 2] = True, False
    check(PatchMask.from_tensor(hidden_BHW, 12), height, width)


def test_distances_of_a_map_with_counts_that_differ():
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    discs = [(rows - 20) ** 2 + (columns - 30) ** 2 < radius**2 for radius in (3, 9, 19)]
    mask = PatchMask.from_tensor(torch.stack(discs), 3)
    assert mask.visible is None
    check(mask, 40, 60)


def test_a_map_finer_than_the_image_hides_what_it_touches():
    """As the model hides it: PatchMask.at."""
    fine = torch.zeros(1, 16, 24, dtype=torch.bool)
    fine[0, 5, 6:9] = True
    assert torch.equal(pixel_distances(PatchMask(fine), 8, 12) > 0, PatchMask(fine).at(8, 12))
    check(PatchMask(fine), 8, 12)


def test_distances_by_hand():
    """4 x 5 pixels, cells of one pixel, visible at (0, 0) and (3, 3)."""
    hidden = torch.ones(4, 5, dtype=torch.bool)
    hidden[0, 0] = hidden[3, 3] = False
    squared = [[0, 1, 4, 9, 10], [1, 2, 5, 4, 5], [4, 5, 2, 1, 2], [9, 4, 1, 0, 1]]
    mask = PatchMask.from_tensor(hidden, 1)
    assert pixel_distances(mask, 4, 5)[0].square().round().int().tolist() == squared
    roots = [math.sqrt(value) for row in squared for value in row]
    assert avg_dist(mask, 4, 5).item() == pytest.approx(sum(roots) / 18, rel=1e-6)


def test_avg_dist_of_half_an_image_is_half_its_width():
    """The distances of a hidden half are 1, 2, ..., w: their mean is (w + 1) / 2, whatever the height and the cell."""
    half = torch.tensor([[True, False]])
    for height, width in ((4, 8), (32, 64), (1, 2)):
        assert avg_dist(PatchMask.from_tensor(half, 1), height, width).item() == (width // 2 + 1) / 2
        assert avg_dist(PatchMask.from_tensor(half.T, 1), width, height).item() == (width // 2 + 1) / 2


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 47), (31, 0), (31, 47), (13, 29)])
def test_single_visible_pixel(row, column):
    hidden = torch.ones(1, 32, 48, dtype=torch.bool)
    hidden[0, row, column] = False
    check(PatchMask.from_tensor(hidden, 1), 32, 48)


def test_single_hidden_pixel_is_one_pixel_away():
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[0, 3, 4] = True
    assert avg_dist(PatchMask.from_tensor(hidden, 1), 8, 8).item() == 1


@pytest.mark.parametrize("cell", [1, 8])
def test_chunks_do_not_change_the_result(cell, monkeypatch):
    mask = Random(ImageSpec(3, 24, 32), cell=cell, ratio=0.6).sample(11, generator(0), CPU)
    sizes: list[int] = []
    distances = module._distances
    monkeypatch.setattr(
        module, "_distances", lambda hidden, height: sizes.append(len(hidden)) or distances(hidden, height)
    )
    results = pixel_distances(mask, 24, 32), avg_dist(mask, 24, 32)
    assert sizes == [11, 11]
    for most, expected in ((1, [1] * 11), (24 * 32 * 4, [4, 4, 3])):
        monkeypatch.setattr(module, "PIXELS_AT_ONCE", most)
        sizes.clear()
        assert torch.equal(pixel_distances(mask, 24, 32), results[0])
        assert torch.equal(avg_dist(mask, 24, 32), results[1])
        assert sizes == expected * 2


def test_distances_at_the_size_of_a_large_image():
    """512 px: integers of 32 bits hold the squares, and float32 their roots."""
    mask = Random(ImageSpec(3, 512, 512), cell=64, ratio=0.95).sample(2, generator(0), CPU)
    np.testing.assert_allclose(pixel_distances(mask, 512, 512), reference(mask.at(512, 512)), rtol=1e-6)


def test_distances_leave_the_mask_alone():
    mask = Random(ImageSpec(1, 16, 16), cell=4, ratio=0.5).sample(2, generator(0), CPU)
    before = mask.hidden_BHW.clone()
    pixel_distances(mask, 16, 16)
    assert torch.equal(mask.hidden_BHW, before)


def test_masks_without_visible_or_hidden_pixels_are_errors():
    mixed = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match="nearest visible pixel: a sample has none"):
        pixel_distances(PatchMask(mixed), 4, 8)
    with pytest.raises(ValueError, match="mean over hidden pixels: a sample has none"):
        avg_dist(PatchMask(~mixed), 4, 8)
    assert pixel_distances(PatchMask(~mixed), 4, 8)[1].sum() == 0
    with pytest.raises(ValueError, match="does not fit a grid of 4x9"):
        pixel_distances(PatchMask(mixed[:1]), 4, 9)


def test_masker_avg_dist_is_the_mean_over_its_masks_with_an_interval():
    """Against scipy's distances of masks that are drawn anew: both means lie where the interval says."""
    image = ImageSpec(3, 64, 96)
    masker = Random(image, cell=16, ratio=0.6)
    estimate = masker_avg_dist(masker, image, samples=400, seed=5)
    hidden_BHW = masker.sample(1500, generator(9), CPU).at(64, 96)
    values = [distances[hidden].mean() for distances, hidden in zip(reference(hidden_BHW), hidden_BHW, strict=True)]
    assert estimate.runs == 400
    assert abs(estimate.mean - np.mean(values)) < 1.5 * estimate.half
    assert estimate.half == pytest.approx(student.ppf(0.975, 399) * np.std(values, ddof=1) / math.sqrt(400), rel=0.15)


def test_masker_avg_dist_depends_on_the_seed_alone():
    image = ImageSpec(3, 32, 32)
    masker = Block(image, cell=4, ratio=0.5)
    estimate = masker_avg_dist(masker, image, samples=16)
    torch.manual_seed(17)
    assert masker_avg_dist(masker, image, samples=16) == estimate
    assert masker_avg_dist(masker, image, samples=16, seed=1) != estimate


def test_masker_avg_dist_of_a_fixed_pattern_has_no_spread():
    """One of four: of each 2 x 2 cells of one pixel, two lie 1 away and one the root of 2."""
    image = ImageSpec(1, 9, 9)  # the pattern begins and ends with a visible row and column
    estimate = masker_avg_dist(Grid(image, cell=1), image, samples=8)
    straight, diagonal = 2 * 4 * 5, 4 * 4
    assert estimate.mean == pytest.approx((straight + diagonal * math.sqrt(2)) / (straight + diagonal), rel=1e-6)
    assert estimate.half == 0


def test_masker_avg_dist_grows_with_cell_and_ratio():
    """SimMIM's figure: larger cells and higher ratios hide pixels farther from what is visible."""
    image = ImageSpec(3, 128, 128)
    means = [[masker_avg_dist(Random(image, cell=c, ratio=r), image, 32).mean for r in (0.4, 0.8)] for c in (8, 16, 32)]
    assert all(low < high for low, high in means)
    for ratio in (0, 1):
        assert means[0][ratio] < means[1][ratio] < means[2][ratio]


def test_masker_avg_dist_needs_a_mask():
    image = ImageSpec(3, 32, 32)
    with pytest.raises(ValueError, match="samples is 0"):
        masker_avg_dist(Random(image), image, samples=0)
