"""Colours of a target that is no picture: its principal components."""

import numpy as np
import torch
from small_models import generator

from mim.pictures.components import component_colours


def maps(channels=5):
    mixing = torch.randn(channels, channels, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(2, channels, 4, 6, generator=generator(2), dtype=torch.float64)
    return torch.einsum("cd,bdhw->bchw", mixing, noise)


def test_colours_are_the_first_three_components_on_the_scale_of_the_target():
    target = maps()
    prediction = 0.5 * target + 0.1
    red = {}
    rows = target.movedim(1, -1).reshape(-1, 5).numpy()
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    low, high = np.quantile((rows - rows.mean(axis=0)) @ axes[0], [0.01, 0.99])
    for name, each in {"target": target, "prediction": prediction}.items():
        share = (each.movedim(1, -1).numpy() - rows.mean(axis=0)) @ axes[0]
        red[name] = 255 * np.clip((share - low) / (high - low), 0, 1)
    pictures = dict(zip(("target", "prediction"), component_colours(target, prediction, (8, 12)), strict=True))
    for name, picture in pictures.items():
        assert (picture.shape, picture.dtype) == ((2, 8, 12, 3), np.uint8)
        assert np.array_equal(picture[:, ::2, ::2], picture[:, 1::2, 1::2])
        levels = picture[:, ::2, ::2, 0].astype(float)
        same, turned = np.abs(levels - red[name]).max(), np.abs(255 - levels - red[name]).max()
        assert min(same, turned) <= 0.5 + 1e-6  # either sign of an axis


def test_a_target_of_one_channel_is_red_alone_and_a_flat_one_does_not_fail():
    target = maps(channels=1)
    picture, _ = component_colours(target, target, (4, 6))
    assert picture[..., 0].std() > 10
    assert not picture[..., 1:].any()
    flat = torch.ones(1, 4, 2, 2)
    assert np.array_equal(*component_colours(flat, flat, (2, 2)))
    assert np.ptp(component_colours(flat, flat, (2, 2))[0], axis=(1, 2)).tolist() == [[0, 0, 0]]
