"""The sheet of predicted masks: each class in its colour, ignored pixels grey, a legend of what is shown."""

import pytest
import torch
from PIL import ImageDraw
from torch import Tensor

from mim.pictures.segmentations import IGNORED, colour_of, draw_segmentations

NAMES = ("background", "crack", "busbar", "never")


def masks() -> tuple[Tensor, Tensor]:
    """Two masks of 8 x 8, the answers wrong in one row of the first."""
    truth = torch.zeros(2, 8, 8, dtype=torch.long)
    truth[:, 4:], truth[:, :, 7] = 1, -1
    answers = truth.clone()
    answers[0, 0], answers[:, :, 7] = 2, 0
    return truth, answers


def drawn(names: tuple[str, ...] = NAMES, channels: int = 3) -> Tensor:
    truth, answers = masks()
    return draw_segmentations(torch.full((2, channels, 8, 8), 0.5), truth, answers, names, "a probe")


def pixels_of(picture_HW3: Tensor, colour: tuple[int, int, int]) -> int:
    return int((picture_HW3 == torch.tensor(colour)).all(dim=2).sum())


def test_segmentations_draw_each_class_in_its_colour_and_ignored_pixels_grey():
    picture, truth, answers = drawn(), *masks()
    block = (picture == torch.tensor(colour_of(2))).all(dim=2).nonzero()
    row = block[block[:, 0] == block[0, 0], 1]
    side = len(row) // 7  # of one pixel of the mask; seven of its row are class 2, one is ignored
    legend = 15 * 15  # at most, of a square in the legend
    answers = answers.masked_fill(truth == -1, -1)
    for number, colour in ((1, colour_of(1)), (2, colour_of(2)), (-1, IGNORED)):
        expected = side**2 * int((truth == number).sum() + (answers == number).sum())
        assert expected <= pixels_of(picture, colour) <= expected + legend
    assert pixels_of(picture, colour_of(3)) == 0


def test_segmentations_name_the_shown_classes_alone(monkeypatch):
    texts, write = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, **style: (texts.append(style["text"]), write(self, **style))
    )
    drawn(channels=5)
    assert texts[-4:] == ["background", "crack", "busbar", "ignored"]
    assert {"image", "true mask", "predicted mask", "87.5% right", "100.0% right", "a probe"} <= set(texts)
    assert "channels 0, 1, 2 of 5 (counted from 0) shown as red, green, blue" in texts


def test_segmentations_of_many_classes_name_the_first_and_count_the_others():
    many = tuple(f"class {number}" for number in range(64))
    truth = torch.arange(64).view(1, 8, 8)
    few = draw_segmentations(torch.zeros(1, 1, 8, 8), truth % 2, truth % 2, many, "")
    picture = draw_segmentations(torch.zeros(1, 1, 8, 8), truth, truth, many, "")
    assert picture.shape[1] == few.shape[1]
    assert few.shape[0] < picture.shape[0] < 1200
    assert picture.dtype == torch.uint8


def test_the_colours_of_150_classes_differ_and_none_is_the_grey_of_ignored_pixels():
    colours = [colour_of(number) for number in range(150)]
    assert len(set(colours)) == 150
    assert all(max(colour) - min(colour) > 20 or set(colour) in ({0}, {255}) for colour in colours)
    first = torch.tensor(colours[:10], dtype=torch.float)
    assert torch.cdist(first, first).fill_diagonal_(999).min() > 60


@pytest.mark.parametrize("shape", [(2, 8, 9), (1, 8, 8)])
def test_segmentations_of_other_sizes_are_refused(shape):
    truth, _ = masks()
    with pytest.raises(ValueError, match="one number and size"):
        draw_segmentations(torch.zeros(2, 3, 8, 8), truth, torch.zeros(shape, dtype=torch.long), NAMES, "")
    with pytest.raises(ValueError, match="one number and size"):
        draw_segmentations(torch.zeros(0, 3, 8, 8), truth[:0], truth[:0], NAMES, "")
