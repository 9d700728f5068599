"""Foreground by the first component, on features that are made for it."""

import torch
from small_models import generator

from mim.evaluation.foreground import find_foreground


def scene(count=4, flip=1.0):
    """Feature maps of 6 x 8 with an object in the middle, and the object."""
    inside_Bhw = torch.zeros(count, 6, 8, dtype=torch.bool)
    for number in range(count):
        inside_Bhw[number, 2:5, 2 + number % 3 : 5 + number % 3] = True
    map_BDhw = 0.1 * torch.randn(count, 5, 6, 8, generator=generator(0))
    map_BDhw[:, 2] += flip * 3 * inside_Bhw
    map_BDhw[:, 4] += inside_Bhw * torch.linspace(-1, 1, 6)[:, None]
    return map_BDhw, inside_Bhw


def test_foreground_is_the_side_away_from_the_border_whatever_the_sign_of_the_features():
    for flip in (1.0, -1.0):
        map_BDhw, inside_Bhw = scene(flip=flip)
        found = find_foreground(map_BDhw)
        assert torch.equal(found.is_foreground_Bhw, inside_Bhw)
        assert 0.5 < found.share < 1


def test_components_of_the_foreground_are_fitted_on_its_patches_alone():
    map_BDhw, inside_Bhw = scene()
    found = find_foreground(map_BDhw)
    first_M = found.components_BhwK[..., 0][inside_Bhw]
    slope_M = map_BDhw[:, 4][inside_Bhw].double()
    assert torch.corrcoef(torch.stack([first_M, slope_M]))[0, 1].abs() > 0.99
    assert found.components_BhwK[inside_Bhw].mean(dim=0).abs().max() < 1e-9


def test_features_that_are_all_alike_have_no_foreground():
    found = find_foreground(torch.ones(1, 3, 4, 4))
    assert not found.is_foreground_Bhw.any()
    assert found.components_BhwK.isfinite().all()
