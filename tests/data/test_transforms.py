"""Transforms: a pure function of image and seed, equal to torchvision's under that seed, in the stored type."""

from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from small_data import digit, photograph
from stored_images import stored, uint16_picture
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from mim.data.preprocess import Preprocess
from mim.data.transforms import AugmentSettings, CentreCrop, RandomCropFlip, to_unit

SIZE = (16, 24)


@pytest.mark.parametrize("kind", stored())
def test_random_crop_flip_is_a_function_of_image_and_seed(kind: str) -> None:
    image, transform = stored()[kind], RandomCropFlip(AugmentSettings(), SIZE)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = transform(image, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(transform(image, 11), first)
    assert len({tuple(transform(image, seed).flatten().tolist()) for seed in range(5)}) == 5


@pytest.mark.parametrize("kind", stored())
def test_random_crop_flip_keeps_the_stored_type_and_leaves_the_image_alone(kind: str) -> None:
    image = stored()[kind]
    out_CHW = RandomCropFlip(AugmentSettings(), SIZE)(image, 3)
    dtype, channels = (image.dtype, len(image)) if isinstance(image, Tensor) else (torch.uint8, len(image.getbands()))
    assert out_CHW.dtype == dtype
    assert out_CHW.shape == (channels, *SIZE)
    untouched = stored()[kind]
    if isinstance(image, Tensor):
        assert torch.equal(image, untouched)
    else:
        assert np.array_equal(np.asarray(image), np.asarray(untouched))


@pytest.mark.parametrize(
    ("kind", "version"),
    # on uint8 tensors the two versions of torchvision's resizing differ in the last bit, and ours is the second
    [("picture", v1), ("picture", v2), ("grey", v1), ("float32", v1), ("float32", v2), ("uint8", v2)],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_random_crop_flip_equals_torchvision_under_the_same_seed(
    kind: str, version: ModuleType, interpolation: str
) -> None:
    image = stored()[kind]
    ours = RandomCropFlip(AugmentSettings(crop_scale=(0.2, 1.0), interpolation=interpolation), (20, 20))
    mode = v1.InterpolationMode(interpolation)
    crop = version.RandomResizedCrop(20, (0.2, 1.0), (3 / 4, 4 / 3), mode, antialias=True)
    theirs = version.Compose([crop, version.RandomHorizontalFlip(0.5)])
    for seed in range(25):
        torch.manual_seed(seed)
        expected = theirs(image)
        expected_CHW = expected if isinstance(expected, Tensor) else F.pil_to_tensor(expected)
        assert torch.equal(ours(image, seed), expected_CHW)


def test_random_crop_flip_takes_seeds_of_63_bits() -> None:
    transform = RandomCropFlip(AugmentSettings(), SIZE)
    low, high = transform(photograph(), 1), transform(photograph(), 2**63 - 1)
    assert not torch.equal(low, high)


def test_random_crop_flip_probability_at_its_ends() -> None:
    full_image = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    image = photograph(*SIZE)
    plain_CHW = F.pil_to_tensor(image)
    for flip, expected_CHW in ((0.0, plain_CHW), (1.0, plain_CHW.flip(-1))):
        transform = RandomCropFlip(AugmentSettings(flip=flip, **full_image), SIZE)
        for seed in range(8):
            assert torch.equal(transform(image, seed), expected_CHW)


def test_random_crop_flip_flips_half_of_the_time() -> None:
    full_image = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    image, transform = digit().resize((8, 8)), RandomCropFlip(AugmentSettings(**full_image), (8, 8))
    plain_CHW = F.pil_to_tensor(image)
    flipped = sum(not torch.equal(transform(image, seed), plain_CHW) for seed in range(400))
    assert abs(flipped - 200) < 60


def coordinates(height: int, width: int) -> Tensor:
    """An image (2, H, W) whose values are its own row and column."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()


@pytest.mark.parametrize("size", [(16, 16), (16, 48), (48, 16)])
def test_random_crop_flip_ratio_is_relative_to_the_aspect_of_the_output(size: tuple[int, int]) -> None:
    """With ratio 1 a crop has the shape of the output, so nothing is stretched: rows and columns scale alike."""
    settings = AugmentSettings(crop_scale=(0.1, 0.2), crop_ratio=(1.0, 1.0), interpolation="bilinear", flip=0.0)
    image = coordinates(600, 600)
    for seed in range(10):
        out_CHW = RandomCropFlip(settings, size)(image, seed)
        row_step = (out_CHW[0, -3, 5] - out_CHW[0, 2, 5]) / (size[0] - 5)
        column_step = (out_CHW[1, 5, -3] - out_CHW[1, 5, 2]) / (size[1] - 5)
        assert row_step / column_step == pytest.approx(1, abs=0.02)


def test_random_crop_flip_crops_have_the_areas_asked_for() -> None:
    settings = AugmentSettings(crop_scale=(0.25, 0.5), interpolation="bilinear", flip=0.0)
    image, transform = coordinates(400, 400), RandomCropFlip(settings, (16, 16))
    areas = []
    for seed in range(200):
        out_CHW = transform(image, seed)
        height = (out_CHW[0, -3, 5] - out_CHW[0, 2, 5]) * 16 / 11
        width = (out_CHW[1, 5, -3] - out_CHW[1, 5, 2]) * 16 / 11
        areas.append(float(height * width) / 400**2)
    assert min(areas) > 0.25 - 0.01
    assert max(areas) < 0.5 + 0.01
    assert np.mean(areas) == pytest.approx(0.375, abs=0.02)


def test_random_crop_flip_uint16_is_rounded_and_not_cut() -> None:
    image = uint16_picture()
    full_image = AugmentSettings(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    out_CHW = RandomCropFlip(full_image, (12, 12))(image, 0)
    wide_CHW = F.resize(image.double(), [12, 12], v1.InterpolationMode.BICUBIC, antialias=True)
    assert out_CHW.dtype == torch.uint16
    difference = out_CHW.double() - wide_CHW.clamp(0, 65535)
    assert difference.abs().max() <= 0.51
    assert abs(difference.mean()) < 0.05  # cutting instead of rounding would give -0.5


def test_random_crop_flip_uint16_overshoot_stays_in_range() -> None:
    step = torch.zeros(1, 32, 32, dtype=torch.int32)
    step[:, :, 16:] = 65535
    out_CHW = CentreCrop(AugmentSettings(), (64, 64))(step.to(torch.uint16)).int()
    assert out_CHW[0, :, :24].max() < 10000
    assert out_CHW[0, :, 40:].min() > 55000


# -------------------------------------------------------------------- the evaluation transform


@pytest.mark.parametrize("kind", stored())
def test_centre_crop_keeps_an_image_of_the_same_size(kind: str) -> None:
    image = stored()[kind]
    expected_CHW = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
    height, width = expected_CHW.shape[1:]
    assert torch.equal(CentreCrop(AugmentSettings(), (height, width))(image), expected_CHW)


@pytest.mark.parametrize("shape", [(30, 30), (17, 90), (90, 17), (5, 7), (16, 25), (333, 500)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 8)])
def test_centre_crop_covers_the_size_without_padding_or_stretching(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    height, width = shape
    image = coordinates(height, width) + 1  # no zero, which padding would bring
    out_CHW = CentreCrop(AugmentSettings(interpolation="bilinear"), size)(image)
    assert out_CHW.shape == (2, *size)
    assert out_CHW.min() >= 0.99
    centre = out_CHW.mean(dim=(1, 2))
    assert centre[0] == pytest.approx((height + 1) / 2, abs=0.6 * max(1, height / size[0]))
    assert centre[1] == pytest.approx((width + 1) / 2, abs=0.6 * max(1, width / size[1]))
    scale = max(size[0] / height, size[1] / width)
    for axis, line in enumerate((out_CHW[0, :, size[1] // 2], out_CHW[1, size[0] // 2])):
        visible = size[axis] / scale  # pixels of the image that are in view along this axis
        assert float(line[-1] - line[0]) <= visible + 1
        assert float(line[-1] - line[0]) >= visible * (1 - 2 / size[axis]) - 1.5


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "shorter"), [(224, 256), (192, 219)])
@pytest.mark.parametrize(("height", "width"), [(256, 341), (300, 256), (427, 640), (1000, 700), (100, 150)])
def test_centre_crop_of_a_share_equals_torchvisions_resize_and_centre_crop(
    height: int, width: int, side: int, shorter: int, interpolation: str
) -> None:
    """MAE and SimMIM at 224: the shorter side to int(224 / .875) = 256, then the centre."""
    image, mode = photograph(height, width), v1.InterpolationMode(interpolation)
    expected_CHW = F.pil_to_tensor(v1.CenterCrop(side)(v1.Resize(shorter, mode)(image)))
    crop = CentreCrop(AugmentSettings(interpolation=interpolation), (side, side), 0.875)
    assert torch.equal(crop(image), expected_CHW)


@pytest.mark.parametrize("share", [1.0, 0.875, 0.5])
@pytest.mark.parametrize("shape", [(60, 60), (48, 100), (100, 48), (9, 13)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 8), (20, 31)])
def test_centre_crop_keeps_the_share_of_the_side_that_covers(
    shape: tuple[int, int], size: tuple[int, int], share: float
) -> None:
    image = coordinates(*shape)
    out_CHW = CentreCrop(AugmentSettings(interpolation="bilinear"), size, share)(image)
    assert out_CHW.shape == (2, *size)
    scale = max(size[0] / shape[0], size[1] / shape[1]) / share  # pixels that come out for one that goes in
    for axis, line in enumerate((out_CHW[0, :, size[1] // 2], out_CHW[1, size[0] // 2])):
        step = (line[3 * size[axis] // 4] - line[size[axis] // 4]) / (3 * size[axis] // 4 - size[axis] // 4)
        middle = line[[size[axis] // 2, (size[axis] - 1) // 2]].mean()
        resized = shape[axis] * scale  # of which there are only whole pixels, first along the axis that covers
        assert shape[axis] / step == pytest.approx(resized, abs=1.1 + max(shape) / min(shape))
        assert middle == pytest.approx((shape[axis] - 1) / 2, abs=1 / scale)


@pytest.mark.parametrize("kind", stored())
def test_centre_crop_of_a_share_keeps_the_stored_type(kind: str) -> None:
    image = stored()[kind]
    out_CHW = CentreCrop(AugmentSettings(), SIZE, 0.875)(image)
    dtype, channels = (image.dtype, len(image)) if isinstance(image, Tensor) else (torch.uint8, len(image.getbands()))
    assert out_CHW.dtype == dtype
    assert out_CHW.shape == (channels, *SIZE)


def test_centre_crop_draws_nothing() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    transform = CentreCrop(AugmentSettings(), SIZE)
    assert torch.equal(transform(photograph(), 1), transform(photograph(), 2))
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------- normalisation

MEAN, STD = (0.2, 0.5), (0.1, 0.25)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.float32, 1)])
def test_normalize_scales_by_the_stored_type(dtype: torch.dtype, scale: int) -> None:
    values_BCHW = (torch.linspace(0, 1, 2 * 2 * 3 * 4).reshape(2, 2, 3, 4) * scale).to(dtype)
    img_BCHW = Preprocess(MEAN, STD)(values_BCHW)
    assert img_BCHW.dtype == torch.float32
    for channel in range(2):
        expected = (values_BCHW[:, channel].double() / scale - MEAN[channel]) / STD[channel]
        assert torch.allclose(img_BCHW[:, channel].double(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_normalize_undo_is_the_inverse(dtype: torch.dtype) -> None:
    values_BCHW = torch.arange(0, 240, 10).reshape(2, 2, 2, 3).to(dtype)
    preprocess = Preprocess(MEAN, STD)
    assert torch.allclose(preprocess.undo(preprocess(values_BCHW)), to_unit(values_BCHW), atol=1e-6)


def test_normalize_takes_one_image_as_well_as_a_batch() -> None:
    values_BCHW = torch.randint(0, 255, (3, 2, 4, 5), dtype=torch.uint8)
    preprocess = Preprocess(MEAN, STD)
    assert torch.equal(preprocess(values_BCHW)[1], preprocess(values_BCHW[1]))


def test_normalize_keeps_nothing_in_a_state_dict() -> None:
    assert Preprocess(MEAN, STD).state_dict() == {}


def test_to_unit_spans_zero_to_one() -> None:
    for dtype, top in ((torch.uint8, 255), (torch.uint16, 65535)):
        assert to_unit(torch.tensor([0, top]).to(dtype)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop_scale", (0.0, 1.0)), ("crop_scale", (0.8, 0.2)), ("crop_scale", (0.5, 1.5)), ("crop_ratio", (2.0, 1.0))],
)
def test_augment_settings_out_of_range_are_refused(key: str, value: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=rf"AUGMENT\.{key}"):
        AugmentSettings(**{key: value})
