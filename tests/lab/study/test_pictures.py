"""Pictures of a study: intervals within 0 to 100, and a frame around a best cell that differs beyond chance."""

import numpy as np
import pytest

from mim.lab.study.pictures import BEST, draw_heat_maps, draw_points, interval_text
from mim.ops.intervals import Estimate

FRAME = [int(BEST[index : index + 2], 16) for index in (1, 3, 5)]


def has_frame(*estimates: Estimate | None) -> bool:
    picture_HW3 = draw_heat_maps("title", {"kNN, %": [list(estimates)]}, "a", ["1"], "b", list("xyz")[: len(estimates)])
    return bool((np.abs(picture_HW3.numpy().astype(int) - FRAME) <= 2).all(axis=-1).any())


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(45.3, 127.1, 2), "[0.0, 100.0]"),
        (Estimate(95.0, 9.0, 2), "[86.0, 100.0]"),
        (Estimate(55.0, 14.1, 3), "± 14.1"),
        (Estimate(55.0, None, 1), ""),
    ],
)
def test_interval_text_ends_at_0_and_100(estimate, text):
    assert interval_text(estimate) == text


def test_heat_map_frames_the_best_cell_only_where_its_interval_meets_no_other():
    assert has_frame(Estimate(90.0, 1.0, 3), Estimate(80.0, 1.0, 3), None)
    assert not has_frame(Estimate(90.0, 1.0, 3), Estimate(89.0, 1.0, 3), None)
    assert not has_frame(Estimate(90.0, None, 1), Estimate(80.0, None, 1), None)


def test_points_keep_their_intervals_between_0_and_100(monkeypatch):
    from matplotlib.axes import Axes

    bars = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, xerr=None, **style: bars.append((x, xerr)))
    draw_points("title", ["a", "b"], {"kNN, %": [Estimate(45.0, 127.0, 2), Estimate(55.0, 14.0, 2)]})
    assert [(x - down, x + up) for x, ([down], [up]) in bars] == [(0.0, 100.0), (41.0, 69.0)]
