"""HOG against loops over pixels, and what its keys refuse."""

import math

import pytest
import torch
from small_models import images

from mim.structures import EncoderSpec, ImageSpec
from mim.targets import HOG

IMAGE = ImageSpec(2, 16, 32)


def make(image=IMAGE, token=16, **keys):
    spec = EncoderSpec(8, token, token, (image.height // token, image.width // token), drops_hidden=False)
    return HOG(image, spec, **keys)


def mirrored(position, size):
    """The pixel that stands for one beyond the border; the border itself stands once."""
    return abs(position) if position < size else 2 * (size - 1) - position


def histograms(picture, bins, cell, window):
    """Of one channel, a list of rows: by (cell row, cell column) the normalised histogram. Source: as HOG's."""
    high, wide = len(picture), len(picture[0])

    def pixel(row, column):
        return picture[mirrored(row, high)][mirrored(column, wide)]

    counts = {(row, column): [0.0] * bins for row in range(high // cell) for column in range(wide // cell)}
    total = (
        sum(math.exp(-0.5 * ((i - (window - 1) / 2) / (window / 2)) ** 2) for i in range(window)) ** 2 if window else 1
    )
    for row in range(high):
        for column in range(wide):
            across = sum(
                weight * (pixel(row + step, column - 1) - pixel(row + step, column + 1))
                for step, weight in ((-1, 1), (0, 2), (1, 1))
            )
            down = sum(
                weight * (pixel(row - 1, column + step) - pixel(row + 1, column + step))
                for step, weight in ((-1, 1), (0, 2), (1, 1))
            )
            weight = 1.0
            if window:
                offsets = [((place % window) - (window - 1) / 2) / (window / 2) for place in (row, column)]
                weight = math.exp(-0.5 * (offsets[0] ** 2 + offsets[1] ** 2)) / total
            number = math.floor(math.atan2(across, down) / math.pi * bins) % bins
            counts[row // cell, column // cell][number] += weight * math.hypot(across, down)
    lengths = {place: max(math.sqrt(sum(count**2 for count in each)), 1e-12) for place, each in counts.items()}
    return {place: [count / lengths[place] for count in each] for place, each in counts.items()}


@pytest.mark.parametrize("keys", [{}, {"window": 0, "bins": 5, "cell": 4}, {"window": 8, "cell": 16}])
def test_hog_equals_loops_over_pixels(keys):
    img = images(2, IMAGE, dtype=torch.float64)
    target = make(**keys).double()
    histogram = target(img).unflatten(1, (IMAGE.channels, target.bins))
    settings = {"bins": 9, "cell": 8, "window": 16} | keys
    for sample in range(2):
        for channel in range(IMAGE.channels):
            for (row, column), expected in histograms(img[sample, channel].tolist(), **settings).items():
                torch.testing.assert_close(
                    histogram[sample, channel, :, row, column], torch.tensor(expected, dtype=torch.float64)
                )


def test_hog_of_an_edge_has_one_bin_whichever_side_is_bright():
    img = torch.zeros(1, 2, 16, 32)
    img[:, 0, :, 4:] = 1.0
    img[:, 1, :, :4] = 1.0
    histogram = make(window=0)(img).unflatten(1, (2, 9))[0, :, :, 0, 0]
    assert histogram.count_nonzero(dim=1).tolist() == [1, 1]
    assert torch.equal(histogram[0], histogram[1])


def test_hog_of_a_flat_cell_is_zero_and_brightness_and_contrast_do_not_count():
    img = images(1, IMAGE, dtype=torch.float64)
    target = make().double()
    torch.testing.assert_close(target(3 * img + 7), target(img))
    assert not target(torch.full_like(img, 0.5)).any()


def test_hog_is_in_float32_where_images_are_narrower():
    img = images(1, IMAGE).bfloat16()
    assert torch.equal(make()(img), make()(img.float()))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"bins": 1}, r"TARGET\.bins is 1: .* at least 2"),
        ({"cell": 0}, r"TARGET\.cell is 0"),
        ({"cell": 5}, r"TARGET\.cell 5 does not divide the image height 16"),
        ({"window": 12}, r"TARGET\.window 12 does not divide the image height 16"),
        ({"token": 4}, r"TARGET\.cell 8 does not divide the encoder's stride of 4 pixels .*use TARGET\.cell 4"),
    ],
)
def test_hog_refuses_by_key_and_value(keys, named):
    with pytest.raises(ValueError, match=named):
        make(**keys)
