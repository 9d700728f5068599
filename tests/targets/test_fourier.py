"""Fourier against numpy's transform of every cell, the sum of squares that it keeps, and what its keys refuse."""

import math

import numpy as np
import pytest
import torch
from small_models import images

from mim.losses import L1, MSE
from mim.structures import EncoderSpec, ImageSpec, PatchMask, Prediction
from mim.targets import Fourier, Pixels

IMAGE = ImageSpec(3, 24, 48)
KEYS = [{}, {"cell": 6}, {"cell": 3}, {"cell": 1}, {"cell": 6, "stride": 2}, {"normalize": "patch"}]


def make(image=IMAGE, token=12, part=Fourier, **keys):
    """`token`: pixels of the image side that one token stands for."""
    spec = EncoderSpec(8, token, token, (image.height // token, image.width // token), drops_hidden=False)
    return part(image, spec, **keys)


def pixels(**keys):
    return make(part=Pixels, **{key: value for key, value in keys.items() if key != "cell"})


def spectrum_of(cell):
    """Real parts, then imaginary parts, of a square cell, each frequency or its mirror image once, by numpy."""
    side = len(cell)
    values = np.fft.fft2(cell, norm="ortho")
    real, imaginary, met = [], [], set()
    for row in range(side):
        for column in range(side // 2 + 1):
            mirror = (-row % side, -column % side)
            if mirror in met and mirror != (row, column):
                continue
            met.add((row, column))
            factor = 1 if mirror == (row, column) else math.sqrt(2)
            real.append(factor * values[row, column].real)
            imaginary += [factor * values[row, column].imag] if factor > 1 else []
    return real + imaginary


@pytest.mark.parametrize("keys", KEYS)
def test_fourier_equals_numpys_transform_of_each_cell(keys):
    img = images(2, IMAGE, dtype=torch.float64)
    map_bchw, known = make(**keys)(img), pixels(**keys)(img).numpy()
    cell = keys.get("cell", 12)
    side = cell // keys.get("stride", 1)
    assert map_bchw.shape == (2, 3 * side**2, 24 // cell, 48 // cell)
    assert map_bchw.dtype == torch.float64
    for sample, row, column in np.ndindex(2, 24 // cell, 48 // cell):
        square = known[sample, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        expected = np.concatenate([spectrum_of(square[channel]) for channel in range(3)])
        np.testing.assert_allclose(map_bchw[sample, :, row, column].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keys", KEYS)
def test_fourier_has_the_squared_error_of_pixels_and_another_absolute_error(keys):
    first, second = (images(2, IMAGE, seed=seed, dtype=torch.float64) for seed in (1, 2))
    mask = PatchMask(torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.6)
    target, plain = make(**keys), pixels(**keys)
    ours, theirs = (
        [loss(Prediction(part(first)), part(second), mask).item() for loss in (MSE(), L1())] for part in (target, plain)
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert (ours[1] == pytest.approx(theirs[1], rel=1e-6)) == (keys == {"cell": 1})  # a cell of one pixel is that pixel


@pytest.mark.parametrize("keys", KEYS)
def test_fourier_to_pixels_inverts_the_target(keys):
    img = images(2, IMAGE, dtype=torch.float64)
    target, plain = make(**keys), pixels(**keys)
    expected = plain.to_pixels(plain(img), img)
    torch.testing.assert_close(target.to_pixels(target(img), img), expected, rtol=0, atol=1e-12)
    assert target.borrowed == plain.borrowed


def test_fourier_of_a_wave_is_one_frequency():
    place = torch.arange(48, dtype=torch.float64) * 2 * torch.pi / 12
    wave = torch.cos(3 * place).expand(1, 3, 24, 48)
    spectrum = make()(wave).unflatten(1, (3, 144))
    assert ((spectrum.abs() > 1e-9).sum(dim=2) == 1).all()
    torch.testing.assert_close(spectrum[0, 1, 3, 0, 0].item(), math.sqrt(72))  # its squares sum up to 144 / 2


def test_fourier_is_computed_in_float32_where_images_are_narrower():
    img = images(1, IMAGE).bfloat16()
    target = make(cell=6)
    assert target(img).dtype == torch.float32
    assert torch.equal(target(img), target(img.float()))


def test_fourier_keeps_nothing_in_a_state_dict():
    assert make().state_dict() == {}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"cell": 5}, r"TARGET\.cell 5 does not divide the image height 24"),
        ({"cell": 8}, r"TARGET\.cell 8 must divide the encoder's stride of 12 pixels a token"),
        ({"cell": 24}, r"TARGET\.cell 24 must divide the encoder's stride of 12"),
        ({"cell": 3, "stride": 2}, r"TARGET\.cell 3 must .* be a multiple of TARGET\.stride 2"),
        ({"patch": 6}, r"TARGET\.patch 6 has no effect with TARGET\.normalize none"),
        ({"cell": -1}, r"TARGET\.cell is -1"),
    ],
)
def test_fourier_refuses_by_key_and_value(keys, named):
    with pytest.raises(ValueError, match=named):
        make(**keys)
