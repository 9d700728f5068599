"""Corruptions: equal to the package's under a seed, the same each time, and what is refused.

Shapes: C channels, H W pixels, 3 red, green, blue.
"""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from mim.data.corruptions import NAMES, SEVERITIES, Corrupted, check_corruptible, choose_corruptions
from mim.data.decoding.broken import BrokenImage
from mim.ops.seeding import derive_seed
from mim.structures import ImageSpec

package = pytest.importorskip("imagecorruptions", exc_type=ImportError)  # also where libGL is missing


def as_it_is(image, seed):
    return image


def picture(channels: int = 3, height: int = 32, width: int = 48) -> torch.Tensor:
    """A smooth picture with an edge, (C, H, W) uint8."""
    row_H1, column_W = torch.arange(height)[:, None], torch.arange(width)
    plain_HW = 60 + 60 * torch.sin(row_H1 / 5) + 1.5 * column_W + 40 * (column_W > width // 2)
    return torch.stack([plain_HW + 15 * channel for channel in range(channels)]).clamp(0, 255).to(torch.uint8)


def test_the_corruptions_are_the_fifteen_of_imagenet_c():
    assert list(NAMES) == package.get_corruption_names("common")


COMPILED = [pytest.param("glass_blur", marks=pytest.mark.slow)]  # seconds to compile
EACH = pytest.mark.parametrize("name", [*(name for name in NAMES if name != "glass_blur"), *COMPILED])


@EACH
def test_a_corruption_is_the_packages_and_the_same_each_time(name):
    image_CHW = picture()
    corrupted_CHW = Corrupted(as_it_is, name, 3)(image_CHW, 7)
    seed = derive_seed(7, f"corruption {name}")
    np.random.seed(seed % 2**32)
    own = {"seed": seed % 2**32} if name in ("impulse_noise", "glass_blur") else {}
    theirs_HW3 = package.corrupt(image_CHW.permute(1, 2, 0).numpy(), 3, name, **own)
    assert np.array_equal(corrupted_CHW.permute(1, 2, 0).numpy(), theirs_HW3)
    state = np.random.get_state()[1].copy()
    assert torch.equal(Corrupted(as_it_is, name, 3)(image_CHW, 7), corrupted_CHW)
    assert np.array_equal(np.random.get_state()[1], state)  # the global generator goes on as before
    assert torch.equal(image_CHW, picture())  # the image itself stays


@EACH
def test_a_higher_severity_is_farther_from_the_image(name):
    """Frost adds less of the image and more of the frost: its image correlates less with the original."""
    image_CHW = picture(height=64, width=64)
    images = [Corrupted(as_it_is, name, severity)(image_CHW, 0).float() for severity in SEVERITIES]
    distances = [(each - image_CHW).square().mean().item() for each in images]
    if name == "frost":
        distances = [1 - torch.corrcoef(torch.stack([each, image_CHW]).flatten(1))[0, 1].item() for each in images]
    assert distances[-1] > 1.2 * distances[0] > 0


def test_images_draw_differently():
    noise = Corrupted(as_it_is, "gaussian_noise", 1)
    assert not torch.equal(noise(picture(), 0), noise(picture(), 1))


def test_grey_noise_is_as_strong_as_that_of_a_channel():
    grey_1HW = torch.full((1, 64, 64), 128, dtype=torch.uint8)
    for name in ("gaussian_noise", "shot_noise", "impulse_noise"):
        one = Corrupted(as_it_is, name, 2)(grey_1HW, 0)
        three = Corrupted(as_it_is, name, 2)(grey_1HW.expand(3, -1, -1), 0)
        assert torch.equal(one[0], three[0])


def test_other_grey_corruptions_keep_the_luminance():
    grey_1HW = picture(1)
    three = Corrupted(as_it_is, "frost", 4)(grey_1HW.expand(3, -1, -1), 0)
    assert not torch.equal(three[0], three[2])  # its pictures are blue
    luminance_HW = np.asarray(Image.fromarray(three.permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(Corrupted(as_it_is, "frost", 4)(grey_1HW, 0)[0].numpy(), luminance_HW)


def test_more_than_eight_bits_are_left_out_by_name():
    for dtype in (torch.uint16, torch.float32):
        with pytest.raises(BrokenImage, match=f"stored as {dtype}, and the corruptions are made for 8 bits"):
            Corrupted(as_it_is, "fog", 1)(torch.zeros(3, 32, 32, dtype=dtype), 0)


def test_names_and_families_choose_corruptions():
    assert choose_corruptions([]) == NAMES
    assert choose_corruptions(["fog", "noise"]) == ("gaussian_noise", "shot_noise", "impulse_noise", "fog")
    with pytest.raises(ValueError, match=r"--only names mist: the corruptions are gaussian_noise, .* families noise, "):
        choose_corruptions(["fog", "mist"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ImageSpec(12, 64, 64), "DATA.channels is 12: the corruptions are made for images of 1 or 3 channels"),
        (ImageSpec(3, 28, 64), r"DATA.image_size is \[28, 64\]: the corruptions need at least 32 pixels a side"),
    ],
)
def test_images_that_cannot_be_corrupted_are_refused(image, message):
    check_corruptible(ImageSpec(1, 32, 32))
    with pytest.raises(ValueError, match=message):
        check_corruptible(image)


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ValueError, match=r"imagecorruptions-imaug .*pip install 'mim-toolkit\[corruptions\]'"):
        check_corruptible(ImageSpec(1, 32, 32))


def test_the_package_that_numpy_2_breaks_is_refused(monkeypatch):
    old = ModuleType("imagecorruptions")
    old.corruptions = ModuleType("imagecorruptions.corruptions")
    monkeypatch.setitem(sys.modules, "imagecorruptions", old)
    with pytest.raises(ValueError, match="pip uninstall imagecorruptions"):
        check_corruptible(ImageSpec(1, 32, 32))
