"""Lowpass against numpy's transform of the whole spectrum, and what its keys refuse."""

import numpy as np
import pytest
import torch
from small_models import images

from mim.structures import EncoderSpec, ImageSpec
from mim.targets import Lowpass, Pixels

IMAGE = ImageSpec(3, 32, 48)
SPEC = EncoderSpec(8, 16, 16, (2, 3), drops_hidden=False)


def filtered(img, radius):
    """Each channel without the frequencies beyond the radius, from the spectrum with 0 in its centre."""
    high, wide = img.shape[-2:]
    rows, columns = np.arange(high) - high // 2, np.arange(wide) - wide // 2
    stays = np.hypot(rows[:, None], columns[None]) <= radius
    spectrum = np.fft.fftshift(np.fft.fft2(img.numpy()), axes=(-2, -1)) * stays
    return torch.from_numpy(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)


@pytest.mark.parametrize("radius", [3, 7.5, 16])
def test_lowpass_equals_numpys_filter_of_the_whole_spectrum(radius):
    img = images(2, IMAGE, dtype=torch.float64)
    target = Lowpass(IMAGE, SPEC, radius=radius)
    torch.testing.assert_close(target(img), filtered(img, radius), rtol=0, atol=1e-12)
    patches = Lowpass(IMAGE, SPEC, radius=radius, normalize="patch")
    expected = Pixels(IMAGE, SPEC, normalize="patch")(filtered(img, radius))
    torch.testing.assert_close(patches(img), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(patches.to_pixels(expected, img), filtered(img, radius), rtol=0, atol=1e-9)


def test_lowpass_keeps_a_slow_wave_and_takes_a_fast_one_away():
    place = torch.arange(48, dtype=torch.float64) * 2 * torch.pi / 48
    slow, fast = (torch.cos(periods * place).expand(1, 3, 32, 48) for periods in (4, 12))
    target = Lowpass(IMAGE, SPEC, radius=8)
    torch.testing.assert_close(target(slow + fast + 5), slow + 5, rtol=0, atol=1e-12)


def test_lowpass_is_computed_in_float32_where_images_are_narrower():
    img = images(1, IMAGE).bfloat16()
    target = Lowpass(IMAGE, SPEC, radius=5)
    assert torch.equal(target(img), target(img.float()))


@pytest.mark.parametrize("radius", [0, -1, 16.5])
def test_lowpass_refuses_a_radius_that_no_image_of_this_size_has(radius):
    with pytest.raises(ValueError, match=rf"TARGET\.radius is {radius}: it must be above 0 and at most 16"):
        Lowpass(IMAGE, SPEC, radius=radius)
