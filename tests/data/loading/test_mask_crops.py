"""Masks in a batch: cut, resized to the nearest pixel and flipped as their images, in training and evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from label_files import write_mask
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mim.data.augment import RandomCropFlipColour
from mim.data.labels.join import join_labels
from mim.data.labels.settings import LabelSettings
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.preprocess import Preprocess
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings
from mim.data.sources.base import Source
from mim.data.sources.folder import Folder
from mim.data.transforms import CentreCrop, Crop, DeviceCropFlip, RandomCropFlip

SIZE = (24, 32)
LEVELS = (0, 120, 240)  # of the three classes in the images


def class_map(seed: int, height: int = 90, width: int = 110) -> np.ndarray:
    """Classes in blocks of 10 x 10 pixels."""
    blocks = np.random.default_rng(seed).integers(3, size=(height // 10, width // 10))
    return np.kron(blocks, np.ones((10, 10))).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Six pictures whose grey levels are their classes, with masks; the last mask has pixels without a class."""
    folder = tmp_path_factory.mktemp("masks")
    for number in range(6):
        numbers_HW = class_map(number)
        write_mask(folder / "images" / f"{number}.png", np.array(LEVELS, np.uint8)[numbers_HW])
        if number == 5:
            numbers_HW[:, :50] = 255
        write_mask(folder / "masks" / f"{number}.png", numbers_HW)
    train = Folder("train", DataSettings(path=str(folder / "images"), channels=1, image_size=SIZE), val_share=0)
    settings = LabelSettings(masks=str(folder / "masks"), names=("a", "b", "c"))
    return join_labels(train, Folder("val", train.settings, val_share=0), settings)[0]


def agreement(images_BCHW: Tensor, labels_BHW: Tensor) -> float:
    """The share of pixels with a class whose grey level is nearest to that of the class."""
    levels = torch.tensor(LEVELS, dtype=torch.float32)
    nearest_BHW = (images_BCHW[:, 0, ..., None].float() - levels).abs().argmin(dim=-1)
    return float((nearest_BHW == labels_BHW)[labels_BHW >= 0].float().mean())


TRANSFORMS = {
    "random_resized": RandomCropFlip(AugmentSettings(interpolation="bilinear"), SIZE),
    "simple": RandomCropFlip(AugmentSettings(crop="simple", padding=9), SIZE),
    "large": RandomCropFlip(AugmentSettings(crop_scale=(0.1, 0.3)), (128, 96)),
    "centre": CentreCrop(AugmentSettings(), SIZE, 0.875),
    "jitter": RandomCropFlipColour(ClassifyAugmentSettings(jitter=0.01), DataSettings(channels=1, image_size=SIZE)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_show_the_classes_of_the_pixels_of_their_crops(pictures: Source, name: str) -> None:
    data = ImageDataset(pictures, TRANSFORMS[name], 0, masks=True)
    batch = data.batch([(epoch, index) for epoch in range(8) for index in range(6)])
    assert batch.labels.dtype == torch.int64
    assert batch.labels.shape == batch.images_BCHW[:, 0].shape
    right = agreement(batch.images_BCHW, batch.labels)
    assert right > 0.91  # the rest are pixels that an edge of a block passes through
    assert right > agreement(batch.images_BCHW, batch.labels.roll(1, dims=2)) + 0.02
    assert right > agreement(batch.images_BCHW, batch.labels.roll(1, dims=1)) + 0.02
    assert right > agreement(batch.images_BCHW, batch.labels.flip(2)) + 0.3


def test_mask_of_a_crop_equals_torchvisions_nearest_pixels() -> None:
    mask_HW = torch.arange(90 * 110).reshape(90, 110)
    transform = RandomCropFlip(AugmentSettings(), SIZE)
    for seed in range(30):
        crop = transform.draw_crop(90, 110, seed)
        row_H, column_W = transform.places(crop, (90, 110))
        box_HW = mask_HW[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        expected_HW = F.resize(box_HW[None], list(SIZE), InterpolationMode.NEAREST_EXACT)[0]
        expected_HW = expected_HW.flip(1) if crop.flipped else expected_HW
        assert torch.equal(mask_HW[row_H][:, column_W], expected_HW)


def test_mask_of_a_simple_crop_is_mirrored_where_the_image_is() -> None:
    """At the size of the image itself, nothing is resized: pixels of the border are those that the image mirrors."""
    image_CHW = torch.arange(24 * 32).reshape(1, 24, 32).float()
    transform = RandomCropFlip(AugmentSettings(crop="simple", padding=5), SIZE)
    for seed in range(30):
        crop = transform.draw_crop(*SIZE, seed)
        row_H, column_W = transform.places(crop, SIZE)
        assert torch.equal(transform.cut(image_CHW, crop, SIZE), image_CHW[:, row_H][:, :, column_W])
    assert transform.places(Crop(-5, 5, *SIZE, False), SIZE).row_H[:6].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("stored_size", [(24, 32), (48, 64), (50, 500), (3, 2000)])
def test_mask_of_a_centre_crop_is_centred_as_the_image(stored_size: tuple[int, int]) -> None:
    """A picture of its own rows and columns, so that each pixel of the crop tells where it comes from."""
    rows_HW, columns_HW = torch.meshgrid(*(torch.arange(side).float() for side in stored_size), indexing="ij")
    for share in (1.0, 0.875):
        transform = CentreCrop(AugmentSettings(interpolation="bilinear"), SIZE, share)
        row_H, column_W = transform.places(stored_size)
        scale = max(1.0, min(stored_size[0] / SIZE[0], stored_size[1] / SIZE[1]))
        for place_HW, places in ((rows_HW, row_H[:, None]), (columns_HW, column_W[None])):
            middle_HW = transform(place_HW[None])[0][2:-2, 2:-2]
            assert (middle_HW - places.expand(SIZE)[2:-2, 2:-2]).abs().max() <= 0.51 + scale / 2


def test_masks_of_crops_that_the_device_cuts_fit_them(pictures: Source) -> None:
    settings = AugmentSettings(on_device=True)
    data = ImageDataset(pictures, DeviceCropFlip(settings, SIZE), 0, repeats=2, masks=True)
    batch = data.batch([(0, index) for index in range(6)])
    assert batch.labels.shape == (12, *SIZE)
    cropped_BCHW = Preprocess((0.5,), (0.5,), settings, SIZE).crop(batch.images_BCHW, batch.crops_B5)
    assert agreement(cropped_BCHW, batch.labels) > 0.9
    host = ImageDataset(pictures, RandomCropFlip(settings, SIZE), 0, repeats=2, masks=True)
    assert torch.equal(batch.labels, host.batch([(0, index) for index in range(6)]).labels)


def test_masks_come_through_workers_and_are_read_where_they_are_asked_for(pictures: Source) -> None:
    data = ImageDataset(pictures, TRANSFORMS["random_resized"], 0, masks=True)
    (here,), (there,) = (list(batches(data, [[(0, 0), (0, 5)]], workers)) for workers in (0, 1))
    assert torch.equal(here.labels, there.labels)
    assert set(here.labels[1].unique().tolist()) <= {-1, 0, 1, 2}
    without = ImageDataset(pictures, TRANSFORMS["random_resized"], 0)  # as in pretraining
    (batch,) = batches(without, [[(0, 0), (0, 5)]], 0)
    assert batch.labels.tolist() == [-1, -1]
    assert torch.equal(batch.images_BCHW, here.images_BCHW)


def test_a_mask_that_becomes_unusable_counts_as_a_broken_file(pictures: Source, tmp_path: Path) -> None:
    root = Path(pictures.describe(0)).parent.parent
    for index in range(3):
        Image.open(root / "images" / f"{index}.png").save(
            write_mask(tmp_path / "images" / f"{index}.png", class_map(0))
        )
        write_mask(tmp_path / "masks" / f"{index}.png", class_map(index))
    train = Folder("train", DataSettings(path=str(tmp_path / "images"), channels=1), val_share=0)
    settings = LabelSettings(masks=str(tmp_path / "masks"), names=("a", "b", "c"))
    source, _ = join_labels(train, Folder("val", train.settings, val_share=0), settings)
    write_mask(tmp_path / "masks" / "1.png", class_map(1, 80))
    data = ImageDataset(source, TRANSFORMS["centre"], 0, masks=True)
    batch = data.batch([(0, 0), (0, 1)])
    (broken,) = batch.broken
    assert broken == (source.describe(1), "its mask has 80 x 110 pixels and the image 90 x 110 (height x width)")
    assert batch.indices[1] != 1
    (left_out,) = data.readable([(0, 1), (0, 2)]).broken
    assert left_out == broken


def test_masks_refuse_transforms_that_move_pixels_without_them(pictures: Source) -> None:
    turning = RandomCropFlipColour(
        ClassifyAugmentSettings(randaugment="rand-m9"), DataSettings(channels=1, mean=(0.5,), std=(0.5,))
    )
    with pytest.raises(ValueError, match=r"AUGMENT\.randaugment turns and shears images, and masks stay"):
        ImageDataset(pictures, turning, 0, masks=True)
    ImageDataset(pictures, turning, 0)
    with pytest.raises(ValueError, match="masks are cut as RandomCropFlip and CentreCrop cut images"):
        ImageDataset(pictures, lambda image, seed: image, 0, masks=True)
