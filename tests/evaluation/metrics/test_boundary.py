"""Boundary F1: by hand, and the values of a plain computation with SciPy's distances."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from mim.evaluation.metrics.boundary import boundary_f1


def boundary(mask_HW: np.ndarray, number: int) -> np.ndarray:
    """The pixels of a class with one of the four neighbours of another, known class."""
    height, width = mask_HW.shape
    on_HW = np.zeros_like(mask_HW, dtype=bool)
    for y, x in zip(*np.nonzero(mask_HW == number), strict=True):
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            v, u = y + down, x + right
            if 0 <= v < height and 0 <= u < width and mask_HW[v, u] not in (number, -1):
                on_HW[y, x] = True
    return on_HW


def plain_f1(truth_HW: np.ndarray, said_HW: np.ndarray, classes: int) -> float:
    said_HW, values = np.where(truth_HW == -1, -1, said_HW), []
    radius = 0.0075 * math.hypot(*truth_HW.shape)
    for number in range(classes):
        true, said = boundary(truth_HW, number), boundary(said_HW, number)
        if true.any() or said.any():
            near = [distance_transform_edt(~other) <= radius if other.any() else other for other in (true, said)]
            precision = near[0][said].mean() if said.any() else 0.0
            recall = near[1][true].mean() if true.any() else 0.0
            values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(values)) if values else math.nan


def blobs(size: tuple[int, int], classes: int, seed: int) -> torch.Tensor:
    """Smooth maps of classes (2, H, W), the second a little different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 5, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    other = fine + 0.1 * torch.randn(fine.shape, generator=generator)
    return torch.cat([fine, other]).argmax(dim=1)


@pytest.mark.parametrize("size", [(20, 24), (120, 160), (60, 330)])
def test_boundary_f1_equals_a_plain_computation(size):
    truth_HW, said_HW = blobs(size, 4, 0)
    truth_HW[5:9, 3:15] = -1
    ours = boundary_f1(truth_HW[None], said_HW[None], 5)
    expected = plain_f1(truth_HW.numpy(), said_HW.numpy(), 5)
    assert 0.05 < expected < 1
    assert ours.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("moved", "value"), [(0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0)])
def test_a_boundary_that_moves_by_less_than_the_tolerance_is_right(moved, value):
    """The diagonal of 160 x 120 is 200, so the tolerance is 1.5 pixels; a line is two boundaries, one of each class."""
    truth, said = (torch.zeros(1, 120, 160, dtype=torch.long) for _ in range(2))
    truth[..., 80:], said[..., 80 + moved :] = 1, 1
    assert boundary_f1(truth, said, 2).item() == value


def test_images_of_a_batch_do_not_mix_and_one_without_a_boundary_has_no_value():
    masks = blobs((30, 40), 3, 1)
    plain = torch.zeros_like(masks[0])
    truth, said = torch.stack([masks[0], plain, plain]), torch.stack([masks[1], plain, masks[1]])
    values = boundary_f1(truth, said, 3)
    assert values[0].item() == pytest.approx(plain_f1(masks[0].numpy(), masks[1].numpy(), 3))
    assert values[1].isnan()
    assert values[2].item() == 0
    assert boundary_f1(truth.fill_(-1), said, 3).isnan().all()


def test_what_is_answered_on_ignored_pixels_changes_nothing():
    truth, said = blobs((40, 40), 3, 2)
    truth[10:20, 10:30] = -1
    other = said.clone()
    other[10:20, 10:30] = 2
    assert boundary_f1(truth[None], said[None], 3).equal(boundary_f1(truth[None], other[None], 3))
