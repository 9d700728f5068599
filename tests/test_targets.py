import pytest
import torch
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


def test_pixels_unchanged_are_the_image_itself():
    target = make()
    assert torch.equal(target(picture()), picture())
    assert torch.equal(target.to_pixels(picture(), images(2, IMAGE)), picture())
    assert target.borrowed == ""


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("token", [8, 16])
def test_pixels_normalised_by_patch_equal_the_published_formula(channels, token):
    image = ImageSpec(channels, 32, 48)
    found = make(image, token, normalize="patch")(picture(image))
    torch.testing.assert_close(found, normalised(picture(image), token), rtol=0, atol=1e-12)


def test_pixels_of_a_flat_patch_are_zero_and_not_infinite():
    assert torch.equal(make(normalize="patch")(torch.full((1, 3, 32, 48), 2.0)), torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("patch", [4, 8])
def test_pixels_can_be_normalised_in_patches_of_their_own(patch):
    found = make(normalize="patch", patch=patch)(picture())
    torch.testing.assert_close(found, normalised(picture(), patch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 4, 16])
def test_pixels_with_a_stride_are_the_average_of_squares(stride):
    target = make(stride=stride)
    assert (target.spec.channels, target.spec.stride) == (3, stride)
    torch.testing.assert_close(target(picture()), pooled(picture(), stride), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 4])
def test_pixels_with_a_stride_are_averaged_before_they_are_normalised(stride):
    expected = normalised(pooled(picture(), stride), 16 // stride)
    found = make(normalize="patch", stride=stride)(picture())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pixels_to_pixels_inverts_the_target(stride):
    img = picture()
    target = make(normalize="patch", stride=stride)
    expected = pooled(img, stride).repeat_interleave(stride, dim=2).repeat_interleave(stride, dim=3)
    torch.testing.assert_close(target.to_pixels(target(img), img), expected, rtol=0, atol=1e-12)
    assert target.borrowed == "mean and variance of each true patch"


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
