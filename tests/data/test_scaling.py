"""DATA.scale and DATA.channels_from: what a model sees of a file's pixel values, in training and in statistics.

Shapes: N images, C channels, H W pixels.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_images import levels
from PIL import Image
from small_data import photograph

from mim.data.loading.dataset import ImageDataset
from mim.data.scaling import scaled
from mim.data.settings import AugmentSettings, DataSettings
from mim.data.sources.base import Need
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack
from mim.data.sources.retry import RetryingSource
from mim.data.statistics import estimate_statistics
from mim.data.transforms import CentreCrop, to_unit

HEIGHT, WIDTH = 20, 36
PERCENTILE = DataSettings(scale="percentile")


def write_stacks(folder: Path, dtype: str = "uint16") -> np.ndarray:
    """Three images of 4 channels as .npy: (N, C, H, W)."""
    images = levels(dtype, 3, 4, HEIGHT, WIDTH)
    for number, image in enumerate(images):
        np.save(folder / f"{number}.npy", image)
    return images


def source(folder: Path, **keys: object) -> Folder:
    return Folder("train", DataSettings(path=str(folder), **{"channels": 4, **keys}), val_share=0)


def test_scale_type_leaves_the_stored_image_as_it_is(tmp_path: Path) -> None:
    for stored in (photograph(), torch.from_numpy(levels("uint16", 4, 5, 6)), torch.rand(4, 5, 6)):
        assert scaled(stored, DataSettings()) is stored
    write_stacks(tmp_path)
    assert RetryingSource(source(tmp_path)).read(0).dtype == torch.uint16


def test_scale_of_two_numbers_is_linear_and_clips_nothing() -> None:
    values = levels("uint16", 4, HEIGHT, WIDTH)
    image = scaled(torch.from_numpy(values), DataSettings(scale=(100.0, 2100.0)))
    assert image.dtype == torch.float32
    assert np.allclose(image, (values.astype(np.float64) - 100) / 2000, rtol=1e-6, atol=1e-6)
    assert image.min() < 0
    assert image.max() > 1
    grey = scaled(Image.fromarray(levels("uint8", HEIGHT, WIDTH)), DataSettings(scale=(0.0, 255.0)))
    assert np.allclose(grey, levels("uint8", HEIGHT, WIDTH)[None] / 255)


def test_scale_percentile_is_that_of_each_channel_and_clipped() -> None:
    values = np.random.default_rng(0).normal([[[5.0]], [[900.0]]], [[[1.0]], [[200.0]]], (2, 50, 60)).astype(np.float32)
    image = scaled(torch.from_numpy(values), PERCENTILE).numpy()
    low, high = (np.percentile(values, percent, axis=(1, 2), keepdims=True) for percent in (1, 99))
    assert np.allclose(image, ((values - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert image.min() == 0
    assert image.max() == 1


def test_scale_percentile_of_few_bright_pixels_or_none_divides_by_no_zero() -> None:
    values = np.zeros((2, 40, 50), np.uint16)
    values[0, 3, 4] = 1000
    image = scaled(torch.from_numpy(values), PERCENTILE)
    assert image[0, 3, 4] == 1
    assert image.sum() == 1
    values[:, :20] = 65535  # no data
    values[:, 20:] = np.arange(1000, 2000).reshape(20, 50)
    image = scaled(torch.from_numpy(values), replace(PERCENTILE, nodata=65535))
    assert torch.equal(image[:, 20:], scaled(torch.from_numpy(values[:, 20:]), PERCENTILE))
    assert image[:, :20].isnan().all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_nodata_becomes_nan_and_all_other_values_are_those_without_it(dtype: str) -> None:
    values = torch.from_numpy(levels(dtype, 2, HEIGHT, WIDTH))
    values[0, 3:6, 4:9] = 7
    image = scaled(values, DataSettings(nodata=7))
    lacking = values.float() == 7
    assert torch.equal(image.isnan(), lacking)
    assert torch.equal(image[~lacking], to_unit(values)[~lacking])


@pytest.mark.parametrize("scale", [(0.0, 1000.0), "percentile"])
def test_statistics_are_those_of_the_scaled_values(tmp_path: Path, scale: object) -> None:
    images = write_stacks(tmp_path)
    data = source(tmp_path, scale=scale)
    mean, std = estimate_statistics(data, 0)
    reader = RetryingSource(data)
    seen = np.stack([reader.read(index).numpy() for index in range(3)]).astype(np.float64)
    assert np.allclose(mean, seen.mean(axis=(0, 2, 3)), rtol=1e-4)
    assert np.allclose(std, seen.std(axis=(0, 2, 3)), rtol=1e-4)
    if scale != "percentile":
        assert np.allclose(mean, images.mean(axis=(0, 2, 3)) / 1000, rtol=1e-4)


def test_statistics_leave_out_the_stored_nodata_value(tmp_path: Path) -> None:
    images = write_stacks(tmp_path, "float32")
    images[:, :, :5] = -9999
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    mean, _ = estimate_statistics(source(tmp_path, scale=(0.0, 10.0), nodata=-9999.0), 0)
    assert np.allclose(mean, images[:, :, 5:].mean(axis=(0, 2, 3), dtype=np.float64) / 10, rtol=1e-4)


def test_every_crop_of_a_picture_sees_the_scale_of_the_whole(tmp_path: Path) -> None:
    photograph(400, 600).save(tmp_path / "a.jpg", quality=95)
    data = source(tmp_path, channels=3, scale="percentile")
    whole = RetryingSource(data).read(0)
    reduced, size = RetryingSource(data).read_reduced(0, lambda height, width: Need(8.0, 10))
    assert torch.equal(reduced, whole)
    assert size == (400, 600)
    images = ImageDataset(data, CentreCrop(AugmentSettings(), (400, 600)), 0)
    assert images.stored_type() == torch.float32
    assert torch.equal(images[(0, 0)].image_CHW, whole)


def test_channels_from_picks_and_a_packed_set_is_not_picked_from_twice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    images = write_stacks(tmp_path / "a")
    data = source(tmp_path / "a", channels=2, channels_from=(3, 1), scale=(0.0, 1000.0))
    settings = PackSettings(short_side=0)
    pack({"train": data, "val": Folder("val", data.settings, val_share=0)}, tmp_path / "out", settings, lambda n: None)
    path = str(tmp_path / "out")
    packed = Packed("train", DataSettings(path=path, channels=2, scale=(0.0, 1000.0)), val_share=0)
    for index in range(3):
        assert np.array_equal(packed.read(index).numpy(), images[index, [3, 1]])  # stored values, which are scaled once
        assert torch.equal(RetryingSource(packed).read(index), RetryingSource(data).read(index))
    with pytest.raises(ValueError, match=r"were packed with it as \[3, 1\]: leave it out"):
        Packed("train", DataSettings(path=path, channels=2, channels_from=(1, 0)), val_share=0)


def test_channels_are_picked_from_a_packed_set(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    images = write_stacks(tmp_path / "a")
    data = source(tmp_path / "a")
    settings = PackSettings(short_side=0)
    pack({"train": data, "val": Folder("val", data.settings, val_share=0)}, tmp_path / "out", settings, lambda n: None)
    path = str(tmp_path / "out")
    packed = Packed("train", DataSettings(path=path, channels=2, channels_from=(2, 0)), val_share=0)
    assert np.array_equal(packed.read(1).numpy(), images[1, [2, 0]])
    with pytest.raises(ValueError, match=r"names 4, and the images packed in .* have the channels 0 to 3"):
        Packed("train", DataSettings(path=path, channels=1, channels_from=(4,)), val_share=0)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"channels": 3, "channels_from": (0, 1)}, r"channels_from is \[0, 1\] and DATA.channels is 3: set DATA"),
        ({"scale": (5.0, 5.0)}, r"DATA.scale is \[5.0, 5.0\]: two rising numbers"),
        ({"scale": (0.0, 1e30)}, "DATA.scale is"),
    ],
)  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(keys: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        DataSettings(**keys)


def test_a_source_that_chooses_no_channels_says_so() -> None:
    with pytest.raises(ValueError, match=r"DATA.name digits does not choose among channels"):
        Digits("train", DataSettings(channels=1, channels_from=(0,)))
