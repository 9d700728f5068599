"""Curves of corruptions: each is drawn, from the accuracy of clean images on.

Shapes: H W pixels.
"""

import numpy as np

from mim.pictures.corruptions import COLOURS, draw_corruption_curves


def rows_of(picture_HW3, colour: str) -> np.ndarray:
    """The rows of pixels of a colour left of the middle of the panels' legends, from the top."""
    rgb_3 = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return np.abs(picture_HW3.numpy().astype(int) - rgb_3).sum(axis=2).__lt__(30).nonzero()[0]


def test_curves_fall_where_accuracy_falls_and_each_family_has_a_panel():
    low, high = ({"blur": {"fog": [value] * 5}} for value in (0.2, 0.8))
    rows = [
        np.median(rows_of(draw_corruption_curves(each, (1, 2, 3, 4, 5), 0.8, 0.1, "t"), COLOURS[0]))
        for each in (low, high)
    ]
    assert rows[0] > rows[1] + 30  # a lower accuracy is farther down
    one = draw_corruption_curves(low, (1, 2, 3, 4, 5), 0.8, 0.1, "t")
    two = draw_corruption_curves({**low, "noise": {"shot_noise": [0.5] * 5}}, (1, 2, 3, 4, 5), 0.8, 0.1, "t")
    assert two.shape[1] > 1.7 * one.shape[1]
