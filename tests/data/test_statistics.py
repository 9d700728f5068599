"""Statistics of measurements: values that mark missing pixels, and images with NaN; the rest is in test_sources.py."""

import numpy as np
import pytest
import torch
from small_data import digit, logged
from torch import Tensor

from mim import build
from mim.build import load_config
from mim.data.decoding.images import BrokenImage
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Stored
from mim.data.sources.digits import Digits
from mim.data.statistics import estimate_statistics
from mim.data.transforms import to_tensor


class Measurements(Source):
    """Images that the test holds."""

    name = "measurements"

    def __init__(self, images: list[Stored | None], **keys: object):
        channels = next((len(to_tensor(image)) for image in images if image is not None), 3)
        super().__init__("train", DataSettings(channels=channels, **keys))
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Stored:
        image = self.images[index]
        if image is None:
            raise BrokenImage("it is cut short")
        return image


def heights(value: float, rows: int, dtype: type = np.float32) -> list[Tensor]:
    """Twelve images of two channels, in 1,000 to 4,000; in the first channel some rows of each have another value."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(12):
        image_CHW = generator.beta(2, 4, (2, 40, 30)) * 3000 + 1000
        image_CHW[0, :rows] = value
        images.append(torch.from_numpy(image_CHW.astype(dtype)))
    return images


def moments(images: list[Tensor], nodata: float, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    pixels_CN = np.concatenate([image.numpy().reshape(2, -1) for image in images], axis=1).astype(np.float64)
    pixels_CN = np.ma.masked_equal(pixels_CN, nodata) / scale
    return np.asarray(pixels_CN.mean(axis=1)), np.asarray(pixels_CN.std(axis=1))


@pytest.mark.parametrize(("nodata", "dtype", "scale"), [(-9999, np.float32, 1), (65535, np.uint16, 65535)])
def test_statistics_leave_out_the_value_of_missing_pixels(nodata: int, dtype: type, scale: float) -> None:
    images = heights(nodata, 3, dtype)
    with logged() as lines:
        mean, std = estimate_statistics(Measurements(images, nodata=float(nodata)), 0)
    expected_mean, expected_std = moments(images, nodata, scale)
    assert mean == pytest.approx(expected_mean, rel=1e-5)
    assert std == pytest.approx(expected_std, rel=1e-5)
    assert lines == []


def test_statistics_without_that_value_are_those_of_all_pixels() -> None:
    images = heights(1500.0, 3)
    statistics = estimate_statistics(Measurements(images), 0)
    assert estimate_statistics(Measurements(images, nodata=-9999.0), 0) == statistics


def test_statistics_leave_out_nan() -> None:
    images = heights(-9999, 3)
    expected = estimate_statistics(Measurements(images, nodata=-9999.0), 0)
    lacking = [torch.where(image == -9999, torch.nan, image) for image in images]
    assert estimate_statistics(Measurements(lacking), 0) == expected


def test_statistics_of_missing_pixels_alone_are_refused() -> None:
    images = heights(-9999, 40)
    with pytest.raises(ValueError, match=r"all sampled pixels of channels \[0\] are missing"):
        estimate_statistics(Measurements(images, nodata=-9999.0), 0)


@pytest.mark.parametrize(
    ("value", "rows", "dtype"),
    [
        *[(value, rows, np.float32) for value in (-9999.0, -32768.0, -1e10) for rows in (1, 8, 30)],
        *[(65535, rows, np.uint16) for rows in (1, 20)],
    ],
)
def test_statistics_warn_of_a_value_that_looks_like_no_data(value: float, rows: int, dtype: type) -> None:
    with logged() as lines:
        estimate_statistics(Measurements(heights(value, rows, dtype)), 0)
    (line,) = lines
    assert f"channels [0] are exactly {value:.10g}, far from all others" in line
    assert f"set DATA.nodata {value:.10g}" in line
    share = float(line.partition("%")[0])
    assert share == pytest.approx(100 * rows / 40, rel=0.3)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *[(value, np.float32) for value in (1000.0, 4000.0, 0.0)],
        (0, np.uint16),  # 3 deviations from the others: as likely black
    ],
)
def test_statistics_do_not_warn_of_values_near_the_others(value: float, dtype: type) -> None:
    with logged() as lines:
        estimate_statistics(Measurements(heights(value, 8, dtype)), 0)
    assert lines == []


def test_statistics_do_not_warn_of_pictures() -> None:
    black_and_white = torch.from_numpy((np.asarray(digit()) > 128).astype(np.uint8) * 255)[None]
    for source in (Digits("train", DataSettings()), Measurements([black_and_white] * 20)):
        with logged() as lines:
            estimate_statistics(source, 0)
        assert lines == []


def test_statistics_leave_out_broken_images_and_name_one() -> None:
    images: list[Stored | None] = [*heights(1500.0, 3)]
    broken = images[5].clone()
    broken[1, 2, 3] = torch.inf
    with logged() as lines:
        statistics = estimate_statistics(Measurements([*images, broken, None]), 0)
    expected = estimate_statistics(Measurements(images), 0)
    assert list(statistics) == [pytest.approx(values, rel=1e-6) for values in expected]
    (line,) = lines
    assert line.startswith("mean and std leave out 2 of 14 sampled images, which cannot be read, such as measurements")
    with pytest.raises(ValueError, match=r"none of the sampled images .* pixel values are infinite"):
        estimate_statistics(Measurements([broken]), 0)


@pytest.mark.parametrize("nodata", [float("nan"), float("-inf")])
def test_nodata_that_is_no_number_is_refused(nodata: float) -> None:
    with pytest.raises(ValueError, match=r"DATA\.nodata is .*: a finite number, or none"):
        DataSettings(nodata=nodata)


def test_nodata_of_the_config_is_left_out(tmp_path) -> None:
    for number, image in enumerate(heights(-9999, 3)):
        (tmp_path / "train").mkdir(exist_ok=True)
        np.save(tmp_path / "train" / f"{number:02d}.npy", image.numpy())
    keys = {"DATA.name": "folder", "DATA.path": tmp_path, "DATA.channels": 2, "DATA.mean": "estimate"}
    keys |= {"DATA.std": "estimate", "DATA.val_share": 0}
    means = []
    for nodata in ("none", -9999):
        words = [str(word) for pair in (keys | {"DATA.nodata": nodata}).items() for word in pair]
        cfg = load_config("quickstart/mae_digits", words)
        means.append(build.with_statistics(cfg, build.build_data(cfg)[0]).DATA.mean)
    assert means[0][0] < 1500 < means[1][0]
    assert means[0][1] == means[1][1]
