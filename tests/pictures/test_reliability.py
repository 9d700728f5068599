"""The reliability diagram and what it shows: bars as high as the share of right answers, the error in the title."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mim.ops.calibration import Calibration, calibration_of
from mim.pictures import reliability
from mim.pictures.reliability import draw_reliability


def bars(picture_HW3: Tensor, colour: str) -> np.ndarray:
    """For each column of pixels, how many have the colour."""
    rgb = torch.tensor([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return ((picture_HW3.int() - rgb).abs().sum(dim=2) < 6).sum(dim=0).numpy()


def test_reliability_bars_are_as_high_as_the_share_of_right_answers():
    counts_B, accuracy_B = np.zeros(15), np.full(15, np.nan)
    counts_B[[12, 14]], accuracy_B[[12, 14]] = 10, (0.4, 0.8)  # away from the legend and, mostly, from the line
    picture_HW3 = draw_reliability(Calibration(counts_B, accuracy_B, accuracy_B), "a run")
    heights = bars(picture_HW3, reliability.RIGHT)
    columns = np.flatnonzero(heights > 20)
    first, second = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1)
    assert len(first) == pytest.approx(len(second), abs=2)
    assert np.median(heights[second]) / np.median(heights[first]) == pytest.approx(2, rel=0.06)


def test_reliability_titles_have_the_error(monkeypatch):
    titles = []
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "set_title", lambda self, text, **style: titles.append(text))
    draw_reliability(calibration_of(np.array([0.9, 0.8]), np.array([True, False])), "a run")
    draw_reliability(calibration_of(np.zeros(0), np.zeros(0)), "a run")
    assert titles == ["a run\nexpected calibration error 45.0%", "a run\nno answers"]
