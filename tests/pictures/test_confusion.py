"""The picture of a confusion matrix: each cell in its place and colour, and nothing cut off."""

from functools import cache

import pytest
import torch
from torch import Tensor

from mim.pictures.confusion import NAMED, draw_confusion

FINETUNED = "Fine-tuned: 70.1% of 3,000 held-out images"
PROBED = "Linear probe, learning rate x 0.3: 70.1% of 50,000 held-out images"
EMPTY, FULL = (247, 251, 255), (8, 48, 107)  # the ends of the colours, for 0 and 1


def confusion(classes: int, samples: int = 3000) -> Tensor:
    """Answers that are right in seven of ten cases."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    other = torch.randint(classes, (samples,), generator=generator)
    answers = torch.where(torch.rand(samples, generator=generator) < 0.7, labels, other)
    return torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes)


def numbers(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


@cache
def drawn(classes: int, title: str = FINETUNED) -> Tensor:
    """The picture of answers that are right in seven of ten cases; not to be changed."""
    return draw_confusion(confusion(classes), numbers(classes), title)


def margins(picture_HW3: Tensor) -> dict[str, int]:
    """White pixels between each edge and what is drawn."""
    ink_HW = (picture_HW3 < 250).any(dim=2)
    rows, columns = ink_HW.any(dim=1).nonzero(), ink_HW.any(dim=0).nonzero()
    height, width = ink_HW.shape
    sides = {"top": rows.min(), "left": columns.min()}
    sides |= {"bottom": height - 1 - rows.max(), "right": width - 1 - columns.max()}
    return {side: int(value) for side, value in sides.items()}


def cells(picture_HW3: Tensor, classes: int) -> Tensor:
    """The colour of each cell, (K, K, 3), from a corner of it that no number reaches.

    The matrix is the square between the first long dark lines, its frame.
    """
    dark_HW = (picture_HW3 < 40).all(dim=2)
    longest = dark_HW.sum(dim=1).max()
    rows = (dark_HW.sum(dim=1) > 0.9 * longest).nonzero().flatten()
    top, bottom = int(rows.min()), int(rows.max())
    columns = dark_HW[top + 1].nonzero().flatten()
    left, right = int(columns.min()), int(dark_HW[top].nonzero().max())
    assert abs((bottom - top) - (right - left)) <= 2  # square
    centres = (torch.arange(classes) + 0.12) / classes
    down, across = (top + centres * (bottom - top)).round().long(), (left + centres * (right - left)).round().long()
    return picture_HW3[down + 1][:, across + 1]


@pytest.mark.parametrize("classes", [2, 10, pytest.param(NAMED, marks=pytest.mark.slow), 200])
def test_confusion_is_a_picture_of_bytes(classes):
    picture = drawn(classes)
    assert picture.dtype == torch.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert max(picture.shape[:2]) < 2000


@pytest.mark.parametrize(
    ("classes", "title"),
    [
        *((classes, PROBED) for classes in (1, 2)),
        *(pytest.param(classes, PROBED, marks=pytest.mark.slow) for classes in (3, 6, 8, NAMED)),
        *((classes, FINETUNED) for classes in (2, 10, 200)),
    ],
)
def test_confusion_cuts_nothing_off(classes, title):
    """Under the long title also where the matrix is smaller."""
    sides = margins(drawn(classes, title))
    assert min(sides.values()) >= 3, sides


@pytest.mark.parametrize("length", [1, pytest.param(20, marks=pytest.mark.slow), 30])
@pytest.mark.parametrize("classes", [2, 10])
def test_confusion_has_room_for_long_names(classes, length):
    names = tuple(f"{number}{'n' * (length - 1)}" for number in range(classes))
    picture = draw_confusion(confusion(classes), names, FINETUNED)
    assert min(margins(picture).values()) >= 3
    height, width, _ = drawn(classes).shape
    assert picture.shape[0] - height == pytest.approx(picture.shape[1] - width, abs=2)
    assert picture.shape[0] >= height + 7 * (length - 1)


def test_confusion_shortens_very_long_names():
    long, cut = ("n" * 90, "other"), ("n" * 29 + "…", "other")
    assert torch.equal(draw_confusion(confusion(2), long, FINETUNED), draw_confusion(confusion(2), cut, FINETUNED))


def test_confusion_takes_any_name_as_it_is():
    """Dollars would be a formula, and a wrong one an error at the end of an epoch."""
    for name in ("$x$", r"$\bad$", "$_$", "a_b^c", "100 %", r"\n"):
        picture = draw_confusion(confusion(2), (name, "other"), name)
        assert min(margins(picture).values()) >= 3


@pytest.mark.parametrize("classes", [3, 10, pytest.param(40, marks=pytest.mark.slow)])
def test_confusion_puts_true_classes_in_rows_and_answers_in_columns(classes):
    """A single wrong answer, of the second class for the last."""
    counts = torch.eye(classes, dtype=torch.long) * 4
    counts[1] = 0
    counts[1, classes - 1] = 4
    colours = cells(draw_confusion(counts, numbers(classes), FINETUNED), classes)
    for row in range(classes):
        for column in range(classes):
            assert tuple(colours[row, column].tolist()) == (FULL if counts[row, column] else EMPTY)


def test_confusion_colours_are_shares_of_the_true_class():
    """A rare class shows as clearly as a common one; a class without samples stays empty."""
    counts = torch.tensor([[9000, 9000, 0], [1, 1, 0], [0, 0, 0]])
    colours = cells(draw_confusion(counts, numbers(3), FINETUNED), 3).int()
    halves = colours[[0, 0, 1, 1], [0, 1, 0, 1]]
    assert (halves - halves[0]).abs().max() <= 1
    assert EMPTY > tuple(halves[0].tolist()) > FULL
    assert all(tuple(colour.tolist()) == EMPTY for colour in (*colours[2], *colours[:, 2]))


@pytest.mark.slow
def test_confusion_writes_counts_and_names_up_to_a_limit():
    def white(classes: int, count: int) -> int:
        picture = draw_confusion(torch.eye(classes, dtype=torch.long) * count, numbers(classes), "")
        blues = {tuple(colour) for colour in cells(picture, classes).flatten(0, 1).tolist()}
        assert blues == {EMPTY, FULL}
        return int((picture == 255).all(dim=2).sum())

    assert white(NAMED, 1) != white(NAMED, 888)  # white numbers on the diagonal
    assert white(NAMED + 1, 1) == white(NAMED + 1, 888)


def test_confusion_leaves_the_counts_alone():
    counts = confusion(4)
    before = counts.clone()
    draw_confusion(counts, numbers(4), FINETUNED)
    assert torch.equal(counts, before)
