"""AUGMENT.crop simple: the whole image, resized so that it just covers the size, at a random place."""

import io
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from small_data import photograph
from stored_images import stored, uint16_picture
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from mim.build import load_config
from mim.data.augment import RandomCropFlipColour
from mim.data.loading.dataset import ImageDataset
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings
from mim.data.sources.base import Need
from mim.data.sources.folder import Folder
from mim.data.transforms import SPARE, Crop, RandomCropFlip
from mim.errors import ConfigError


def simple(size: tuple[int, int] = (20, 20), **keys: object) -> RandomCropFlip:
    return RandomCropFlip(AugmentSettings(crop="simple", **keys), size)


def pixels(image: Image.Image | Tensor) -> Tensor:
    return image if isinstance(image, Tensor) else F.pil_to_tensor(image)


@pytest.mark.parametrize(
    ("kind", "version"),
    # on uint8 tensors the two versions of torchvision's resizing differ in the last bit, and ours is the second
    [("picture", v1), ("picture", v2), ("grey", v1), ("float32", v1), ("float32", v2), ("uint8", v2)],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_simple_crop_equals_torchvision_under_the_same_seed(kind: str, version: ModuleType, interpolation: str) -> None:
    image, ours = stored()[kind], simple(interpolation=interpolation)
    resize = version.Resize(20, v1.InterpolationMode(interpolation), antialias=True)
    crop = version.RandomCrop(20, padding=4, padding_mode="reflect")
    theirs = version.Compose([resize, crop, version.RandomHorizontalFlip(0.5)])
    for seed in range(25):
        torch.manual_seed(seed)
        assert torch.equal(ours(image, seed), pixels(theirs(image)))


def test_simple_crop_without_a_border_equals_torchvision() -> None:
    # its first version; the second draws no place along a side without room
    resize, crop = v1.Resize(20, v1.InterpolationMode.BICUBIC), v1.RandomCrop(20)
    for height, width in ((30, 40), (40, 30), (30, 30)):
        image = photograph(height, width)
        for seed in range(10):
            torch.manual_seed(seed)
            expected_CHW = pixels(v1.RandomHorizontalFlip(0.5)(crop(resize(image))))
            assert torch.equal(simple(padding=0)(image, seed), expected_CHW)


@pytest.mark.parametrize(
    ("stored_size", "rows", "columns"),
    # 224 px: an image of 375 x 500 px becomes 224 x 298 px (int(298.67)); the border of 4 px is on each side
    [((375, 500), (-4, 4), (-4, 78)), ((500, 375), (-4, 78), (-4, 4)), ((100, 100), (-4, 4), (-4, 4))],
)
def test_simple_crops_lie_in_the_resized_image_and_its_border(
    stored_size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    crops = [simple((224, 224)).draw_crop(*stored_size, seed) for seed in range(2000)]
    assert {(crop.height, crop.width) for crop in crops} == {(224, 224)}
    assert (min(crop.top for crop in crops), max(crop.top for crop in crops)) == rows
    assert (min(crop.left for crop in crops), max(crop.left for crop in crops)) == columns
    assert abs(sum(crop.flipped for crop in crops) - 1000) < 100


def test_simple_crop_mirrors_the_border_without_its_edge() -> None:
    image_CHW = torch.arange(12.0).reshape(1, 3, 4)
    ours = simple((3, 4), padding=2)
    corner_CHW = ours.cut(image_CHW, Crop(-2, -2, 3, 4, False), (3, 4))
    assert corner_CHW[0].tolist() == [[10, 9, 8, 9], [6, 5, 4, 5], [2, 1, 0, 1]]
    assert ours.cut(image_CHW, Crop(1, 1, 3, 4, True), (3, 4))[0].tolist() == [
        [6, 7, 6, 5],
        [10, 11, 10, 9],
        [6, 7, 6, 5],
    ]


def test_simple_crop_of_uint16_is_that_of_its_values() -> None:
    image_CHW, ours = uint16_picture(), simple((12, 12))
    for seed in range(5):
        out_CHW = ours(image_CHW, seed)
        assert out_CHW.dtype == torch.uint16
        difference = out_CHW.double() - ours(image_CHW.double(), seed).clamp(0, 65535)
        assert difference.abs().max() <= 0.51


def test_simple_crop_covers_a_size_that_is_not_square() -> None:
    image_CHW = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij"))
    for size in ((16, 32), (32, 16)):
        out_CHW = simple(size, padding=0, interpolation="bilinear", flip=0.0)(image_CHW, 3)
        steps = [(out_CHW[0, 9, 5] - out_CHW[0, 4, 5]) / 5, (out_CHW[1, 5, 9] - out_CHW[1, 5, 4]) / 5]
        assert torch.tensor(steps) == pytest.approx(60 / 32, abs=0.03)  # nothing is stretched


def test_simple_crop_needs_all_rows_in_a_resolution_that_is_enough() -> None:
    crop = Crop(0, 0, 100, 100, False)
    assert simple((100, 100)).need_of(crop, (600, 900)) == Need(600 / 100 / SPARE, 600)
    assert simple((100, 100)).need_of(crop, (90, 120)) == Need(1.0, 90)


def test_simple_crop_of_a_reduced_file_is_near_that_of_the_whole(tmp_path) -> None:
    """A JPEG file of 640 x 800 px, decoded at a quarter of its sides; and a strip, of which the middle is used."""
    for name, size in (("a", (640, 800)), ("b", (8, 4000))):
        content = io.BytesIO()
        photograph(*size).save(content, "JPEG", quality=95)
        (tmp_path / f"{name}.jpg").write_bytes(content.getvalue())
    source, transform = Folder("train", DataSettings(path=str(tmp_path)), val_share=0), simple((64, 64))
    data = ImageDataset(source, transform, 0)
    (seed,) = data._seeds(0, 0, 1)
    whole_CHW = transform(source.read(0), seed)
    assert transform.need_of(transform.draw_crop(640, 800, seed), (640, 800)).reduction > 4
    assert (data[0, 0].image_CHW.float() - whole_CHW.float()).abs().mean() < 3
    assert data[0, 1].image_CHW.shape == (3, 64, 64)


def test_simple_crop_goes_with_the_colours_of_fine_tuning() -> None:
    keys = {"crop": "simple", "interpolation": "bilinear"}
    plain = RandomCropFlip(AugmentSettings(**keys), (20, 20))
    data = DataSettings(image_size=(20, 20), mean=(0.5,) * 3, std=(0.5,) * 3)
    colour = RandomCropFlipColour(ClassifyAugmentSettings(**keys, randaugment="rand-m9-n1-p1"), data)
    assert torch.equal(
        RandomCropFlipColour(ClassifyAugmentSettings(**keys), data)(photograph(), 4), plain(photograph(), 4)
    )
    assert any(not torch.equal(colour(photograph(), seed), plain(photograph(), seed)) for seed in range(5))


def test_simple_crop_leaves_the_image_alone() -> None:
    image = photograph(30, 40)
    simple()(image, 1)
    assert np.array_equal(np.asarray(image), np.asarray(photograph(30, 40)))


def test_simple_crop_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"AUGMENT\.on_device cuts random_resized crops alone: set AUGMENT\.on_device"):
        AugmentSettings(crop="simple", on_device=True)
    with pytest.raises(ValueError, match=r"AUGMENT\.padding is -1"):
        AugmentSettings(padding=-1)
    for name, side in (("quickstart/mae_digits", 32), ("finetune/digits", 32)):
        with pytest.raises(
            ConfigError, match=rf"AUGMENT\.padding is 32 and DATA\.image_size .*at most {side - 1} pixels"
        ):
            load_config(name, {"AUGMENT.crop": "simple", "AUGMENT.padding": 32})
