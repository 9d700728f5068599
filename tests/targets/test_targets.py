import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import images

from mim.structures import EncoderSpec, ImageSpec
from mim.targets import Pixels

IMAGE = ImageSpec(3, 32, 48)


def make(image=IMAGE, token=16, **keys):
    """`token`: pixels of the image side that one token stands for."""
    spec = EncoderSpec(8, token, token, (image.height // token, image.width // token), drops_hidden=False)
    return Pixels(image, spec, **keys)


def picture(image=IMAGE, batch=2):
    """Images in float64 whose patches differ in mean and contrast."""
    scale = torch.linspace(0.1, 4, image.width, dtype=torch.float64)
    return images(batch, image, dtype=torch.float64) * scale + 3 * scale


def pooled(img, stride):
    """Mean of every stride x stride square, by a loop."""
    height, width = img.shape[-2] // stride, img.shape[-1] // stride
    out = torch.empty(*img.shape[:2], height, width, dtype=img.dtype)
    for row in range(height):
        for column in range(width):
            square = img[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            out[:, :, row, column] = square.mean(dim=(2, 3))
    return out


def normalised(img, side):
    """Each patch minus its mean over sqrt(unbiased variance + 1e-6), over all its values, by a loop."""
    out = torch.empty_like(img)
    for row in range(0, img.shape[-2], side):
        for column in range(0, img.shape[-1], side):
            patch = img[:, :, row : row + side, column : column + side]
            count = patch[0].numel()
            mean = patch.sum(dim=(1, 2, 3), keepdim=True) / count
            variance = ((patch - mean) ** 2).sum(dim=(1, 2, 3), keepdim=True) / (count - 1)
            out[:, :, row : row + side, column : column + side] = (patch - mean) / (variance + 1e-6) ** 0.5
    return out


def around(map_hw, window):
    """Mean and unbiased variance of the entries that exist in the window around each, by a loop."""
    height, width = map_hw.shape
    mean, variance = np.empty((2, height, width))
    for row in range(height):
        for column in range(width):
            neighbours = [
                map_hw[y, x]
                for y in range(row - window // 2, row + window // 2 + 1)
                for x in range(column - window // 2, column + window // 2 + 1)
                if 0 <= y < height and 0 <= x < width
            ]
            mean[row, column] = sum(neighbours) / len(neighbours)
            variance[row, column] = sum((value - mean[row, column]) ** 2 for value in neighbours) / (
                len(neighbours) - 1
            )
    return mean, variance


def normalised_by_window(img, window):
    """Each entry minus the mean over sqrt(variance + 1e-6) of the window around it, channel by channel, by loops."""
    out = torch.empty_like(img)
    for sample in range(img.shape[0]):
        for channel in range(img.shape[1]):
            map_hw = img[sample, channel].numpy()
            mean, variance = around(map_hw, window)
            out[sample, channel] = torch.from_numpy((map_hw - mean) / (variance + 1e-6) ** 0.5)
    return out


def published_norm_targets(img, window):
    """Swin-Transformer, models/simmim.py, norm_targets: means by pooling, the variance from the mean of squares."""

    def pool(x, count_include_pad=False):
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=count_include_pad)

    mean, count = pool(img), pool(torch.ones_like(img), count_include_pad=True) * window**2
    variance = (pool(img**2) - mean**2) * count / (count - 1)
    return (img - mean) / (variance.clamp(min=0) + 1e-6) ** 0.5


def test_pixels_unchanged_are_the_image_itself():
    target = make()
    assert torch.equal(target(picture()), picture())
    assert torch.equal(target.to_pixels(picture(), images(2, IMAGE)), picture())
    assert target.borrowed == ""


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("token", [8, 16])
def test_pixels_normalised_by_patch_equal_the_published_formula(channels, token):
    image = ImageSpec(channels, 32, 48)
    actual = make(image, token, normalize="patch")(picture(image))
    torch.testing.assert_close(actual, normalised(picture(image), token), rtol=0, atol=1e-12)


def test_pixels_of_a_flat_patch_are_zero_and_not_infinite():
    assert torch.equal(make(normalize="patch")(torch.full((1, 3, 32, 48), 2.0)), torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("patch", [4, 8])
def test_pixels_can_be_normalised_in_patches_of_their_own(patch):
    actual = make(normalize="patch", patch=patch)(picture())
    torch.testing.assert_close(actual, normalised(picture(), patch), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "window"), [((8, 12), 3), ((12, 8), 5), ((8, 8), 7), ((4, 12), 9), ((8, 12), 47)])
@pytest.mark.parametrize("channels", [1, 4])
def test_pixels_normalised_by_window_equal_a_plain_loop(size, window, channels):
    image = ImageSpec(channels, *size)  # windows reach beyond the image on one side or both
    actual = make(image, token=4, normalize="window", window=window)(picture(image))
    torch.testing.assert_close(actual, normalised_by_window(picture(image), window), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("image", "window"), [(ImageSpec(3, 64, 96), 47), (IMAGE, 47), (IMAGE, 9)])
def test_pixels_normalised_by_window_equal_the_published_pooling(image, window, dtype):
    img = picture(image).to(dtype)
    actual = make(image, normalize="window", window=window)(img)
    assert actual.dtype == dtype
    expected = published_norm_targets(img.double(), window).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5)
    assert make(image, normalize="window").window == 47


def test_pixels_of_a_flat_window_are_zero_and_not_noise():
    image = ImageSpec(3, 64, 64)
    flat = torch.full((1, 3, 64, 64), 2.117)
    assert published_norm_targets(flat, 47).abs().max() > 1e-4  # as float32 rounds sums
    assert make(image, normalize="window")(flat).abs().max() < 1e-6


def test_pixels_normalised_by_window_see_no_further_than_the_window():
    target, img = make(normalize="window", window=5), picture()
    changed = img.clone()
    changed[0, 1, 10, 20] += 1.0
    moved = target(changed) != target(img)
    expected = torch.zeros_like(moved)
    expected[0, 1, 8:13, 18:23] = True
    assert torch.equal(moved, expected)


def test_pixels_normalised_by_window_keep_nothing_in_a_state_dict():
    assert make(normalize="window").state_dict() == {}


@pytest.mark.parametrize("stride", [2, 4, 16])
def test_pixels_with_a_stride_are_the_average_of_squares(stride):
    target = make(stride=stride)
    assert (target.spec.channels, target.spec.stride) == (3, stride)
    torch.testing.assert_close(target(picture()), pooled(picture(), stride), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 4])
def test_pixels_with_a_stride_are_averaged_before_they_are_normalised(stride):
    expected = normalised(pooled(picture(), stride), 16 // stride)
    actual = make(normalize="patch", stride=stride)(picture())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    expected = normalised_by_window(pooled(picture(), stride), 5)  # so many entries of the target
    actual = make(normalize="window", window=5, stride=stride)(picture())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(
    ("keys", "borrowed"),
    [
        ({"normalize": "patch"}, "mean and variance of each true patch"),
        ({"normalize": "window"}, "mean and variance of the true pixels around each"),
        ({"normalize": "window", "window": 3}, "mean and variance of the true pixels around each"),
    ],
)
def test_pixels_to_pixels_inverts_the_target(stride, keys, borrowed):
    img = picture()
    target = make(stride=stride, **keys)
    expected = pooled(img, stride).repeat_interleave(stride, dim=2).repeat_interleave(stride, dim=3)
    torch.testing.assert_close(target.to_pixels(target(img), img), expected, rtol=0, atol=1e-12)
    assert target.borrowed == borrowed


def test_pixels_to_pixels_of_a_raw_stride_repeats_each_entry():
    target = make(stride=2)
    expected = pooled(picture(), 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(target.to_pixels(target(picture()), picture()), expected, rtol=0, atol=1e-12)
    assert target.borrowed == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stride": 5}, r"TARGET\.stride 5 does not divide the image height 32"),
        ({"stride": 32}, r"TARGET\.stride 32 does not divide the image width 48"),
        ({"patch": 8}, r"TARGET\.patch 8 has no effect with TARGET\.normalize none"),
        ({"normalize": "window", "patch": 8}, r"TARGET\.patch 8 has no effect with TARGET\.normalize window"),
        ({"window": 9}, r"TARGET\.window 9 has no effect with TARGET\.normalize none"),
        ({"normalize": "patch", "window": 9}, r"TARGET\.window 9 has no effect with TARGET\.normalize patch"),
        *(({"normalize": "window", "window": side}, rf"TARGET\.window is {side}: .*odd") for side in (-3, 0, 1, 2, 48)),
        ({"normalize": "patch", "patch": 32}, r"TARGET\.patch 32 does not divide the image width 48"),
        ({"normalize": "patch", "patch": 4, "stride": 8}, r"TARGET\.patch is 4 px and TARGET\.stride 8"),
    ],
)
def test_pixels_refuse_what_does_not_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        make(**keys)


def test_pixels_refuse_a_patch_of_one_value_that_has_no_variance():
    with pytest.raises(ValueError, match="at least two values"):
        make(ImageSpec(1, 32, 48), normalize="patch", patch=4, stride=4)


def test_pixels_refuse_a_window_around_the_only_entry_there_is():
    with pytest.raises(ValueError, match=r"TARGET\.stride 16 leaves one entry"):
        make(ImageSpec(3, 16, 16), normalize="window", stride=16)
    actual = make(ImageSpec(3, 16, 32), normalize="window", stride=16)(picture(ImageSpec(3, 16, 32)))
    assert actual.shape == (2, 3, 1, 2)
    assert actual.abs().min() > 0.1
