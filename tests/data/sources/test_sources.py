"""The data sets that come by name, and the statistics of any source."""

import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small_data import logged
from torch import Tensor
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from mim.data.decoding.images import BrokenImage
from mim.data.settings import DataSettings
from mim.data.sources.base import Need, Source, Stored
from mim.data.sources.cifar10 import CIFAR10
from mim.data.sources.digits import Digits
from mim.data.sources.retry import RetryingSource
from mim.data.statistics import SAMPLE, estimate_statistics
from mim.data.transforms import to_tensor

# -------------------------------------------------------------------- digits


def digits(split: str, channels: int = 1) -> Digits:
    return Digits(split, DataSettings(channels=channels))


def test_digits_splits_are_a_partition_of_all_digits() -> None:
    train, val = digits("train"), digits("val")
    assert (len(train), len(val)) == (1437, 360)
    assert len(train.labels) == 1437
    assert len(val.labels) == 360
    counts = Counter(
        (int(source.labels[index]), source.read(index).tobytes())
        for source in (train, val)
        for index in range(len(source))
    )
    everything = load_digits()
    levels = [Image.fromarray((image * (255 / 16)).round().astype(np.uint8)) for image in everything.images]
    pictures = [level.resize((32, 32), Image.Resampling.BICUBIC).tobytes() for level in levels]
    assert counts == Counter(zip(everything.target.tolist(), pictures, strict=True))


def test_digits_classes_are_balanced_as_in_the_whole() -> None:
    everything, val = np.bincount(load_digits().target), np.bincount(digits("val").labels)
    assert np.abs(val - everything * 360 / 1797).max() <= 1
    assert digits("val").classes == tuple("0123456789")


def test_digits_are_the_same_every_time() -> None:
    one, two = digits("val"), digits("val")
    assert np.array_equal(one.labels, two.labels)
    assert all(one.read(index).tobytes() == two.read(index).tobytes() for index in range(len(one)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_digits_have_the_channels_asked_for(channels: int, mode: str) -> None:
    picture = digits("val", channels).read(0)
    assert (picture.mode, picture.size) == (mode, (32, 32))
    assert np.asarray(picture).max() > 200


def test_digits_are_named_to_a_person() -> None:
    assert digits("val").describe(3) == "digits val image 3"


# -------------------------------------------------------------------- CIFAR-10

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Files in CIFAR-10's format with a few random images each; gives each file's rows (3072 bytes) and labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    content = {}
    for name, count in (*((f"data_batch_{number}", 4) for number in range(1, 6)), ("test_batch", 6)):
        rows, labels = (
            generator.integers(0, 256, (count, 3072)).astype(np.uint8),
            generator.integers(0, 10, count).tolist(),
        )
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels}))
        content[name] = (rows, labels)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    return content


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Such files in tmp_path, whose checksums torchvision is told not to compare."""
    monkeypatch.setattr(TorchvisionCIFAR10, "train_list", [[name, None] for name, _ in TorchvisionCIFAR10.train_list])
    monkeypatch.setattr(TorchvisionCIFAR10, "test_list", [[name, None] for name, _ in TorchvisionCIFAR10.test_list])
    monkeypatch.setattr(TorchvisionCIFAR10, "meta", {**TorchvisionCIFAR10.meta, "md5": None})
    return write_cifar10(tmp_path)


def test_cifar10_reads_its_files(tmp_path: Path, cifar10: dict) -> None:
    settings = DataSettings(path=str(tmp_path))
    train, val = CIFAR10("train", settings), CIFAR10("val", settings)
    assert (len(train), len(val)) == (20, 6)
    assert train.classes == tuple(NAMES)
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [label for number in range(1, 6) for label in cifar10[f"data_batch_{number}"][1]]
    assert val.labels.tolist() == cifar10["test_batch"][1]
    picture = train.read(9)
    assert picture.mode == "RGB"
    row = cifar10["data_batch_3"][0][1]
    assert np.array_equal(np.asarray(picture), row.reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar10_has_the_channels_asked_for(tmp_path: Path, cifar10: dict) -> None:
    assert CIFAR10("val", DataSettings(path=str(tmp_path), channels=1)).read(0).mode == "L"


def test_cifar10_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchvisionCIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match="cannot be downloaded") as caught:
        CIFAR10("train", DataSettings(path=str(tmp_path)))
    message = str(caught.value)
    assert f"DATA.path {tmp_path}" in message
    assert "cifar-10-python.tar.gz" in message
    assert "DATA.name folder" in message


# ------------------------------------------------------------- a source of a user


def other_kinds() -> dict[str, object]:
    return {
        "a tensor (4, 5) of uint8": torch.zeros(4, 5, dtype=torch.uint8),
        "a tensor (4, 5, 3) of uint8": torch.zeros(4, 5, 3, dtype=torch.uint8),
        "a tensor (3, 4, 5) of int64": torch.zeros(3, 4, 5, dtype=torch.int64),
        "a PIL image of mode L": Image.new("L", (5, 4)),
        "an object of type numpy.ndarray": np.zeros((3, 4, 5), np.uint8),
    }


@pytest.mark.parametrize("kind", other_kinds())
def test_source_that_gives_no_image_of_these_channels_is_wrong_and_not_broken(kind: str) -> None:
    """Pixels of int64 would train as floats, unscaled."""
    source = MemorySource([torch.zeros(3, 4, 5), other_kinds()[kind]])
    reader = RetryingSource(source)
    for read in (reader.read, lambda index: reader.read_reduced(index, lambda height, width: Need(1.0, height))):
        read(0)
        with pytest.raises(ValueError, match=rf"^kept train image 1 is {re.escape(kind)}, and DATA.channels is 3: "):
            read(1)


def test_statistics_name_a_source_without_images() -> None:
    with pytest.raises(ValueError, match=r"^DATA.name kept has no train images, and DATA.mean estimate needs some$"):
        estimate_statistics(MemorySource([]), 0)


# -------------------------------------------------------------------- statistics


class MemorySource(Source):
    """Images that the test holds; None stands for a file that cannot be read."""

    name = "kept"

    def __init__(self, images: list[Stored | None]):
        channels = next((len(to_tensor(image)) for image in images if image is not None), 3)
        super().__init__("train", DataSettings(channels=channels))
        self.images, self.reads = images, []

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Stored:
        self.reads.append(index)
        image = self.images[index]
        if image is None:
            raise BrokenImage("it is cut short")
        return image


def random_images(dtype: str, count: int = 7) -> list[Tensor]:
    """Images of unlike sizes, channels of unlike distributions."""
    generator = np.random.default_rng(0)
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    return [
        torch.from_numpy((generator.beta(2, [[[1]], [[2]], [[5]]], (3, 4 + number, 5)) * scale).astype(dtype))
        for number in range(count)
    ]


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_statistics_equal_those_of_all_pixels(dtype: str, scale: int) -> None:
    images = random_images(dtype)
    mean, std = estimate_statistics(MemorySource(images), 0)
    pixels_CN = np.concatenate([image.numpy().reshape(3, -1) for image in images], axis=1).astype(np.float64) / scale
    assert mean == pytest.approx(pixels_CN.mean(axis=1), abs=1e-6)
    assert std == pytest.approx(pixels_CN.std(axis=1), rel=1e-5)
    assert all(type(number) is float for number in (*mean, *std))


def test_statistics_of_pictures_equal_those_of_their_pixels() -> None:
    source = digits("val")
    mean, std = estimate_statistics(source, 0)
    pixels = np.stack([np.asarray(source.read(index)) for index in range(len(source))]) / 255
    assert mean == pytest.approx((pixels.mean(),), abs=1e-6)
    assert std == pytest.approx((pixels.std(),), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
def test_statistics_of_floats_normalise_at_any_scale(scale: float) -> None:
    images = [image * scale for image in random_images("float32")]
    mean, std = estimate_statistics(MemorySource(images), 0)
    pixels_CN = np.concatenate([image.numpy().reshape(3, -1) for image in images], axis=1).astype(np.float64)
    normalised_CN = (pixels_CN - np.array(mean)[:, None]) / np.array(std)[:, None]
    assert np.abs(normalised_CN.mean(axis=1)).max() < 1e-4
    assert np.abs(normalised_CN.std(axis=1) - 1).max() < 1e-4


@pytest.mark.parametrize("value", [0, 1, 134, 241, 255])
def test_statistics_channel_that_never_varies_has_deviation_one_and_a_warning(value: int) -> None:
    images = [*random_images("uint8"), torch.randint(0, 255, (3, 11, 13), dtype=torch.uint8)]
    for image in images:
        image[1] = value
    with logged() as lines:
        mean, std = estimate_statistics(MemorySource(images), 0)
    assert std[1] == 1.0
    assert mean[1] == pytest.approx(value / 255, abs=1e-6)
    assert min(std[0], std[2]) > 0.01
    assert lines == ["channels [1] never vary: their std is set to 1"]


def test_statistics_no_grey_level_passes_for_one_that_varies() -> None:
    wrong = []
    for value in range(256):
        image = torch.full((1, 11, 13), value, dtype=torch.uint8)
        with logged() as lines:
            _, std = estimate_statistics(MemorySource([image] * 11), 0)
        if std != (1.0,) or len(lines) != 1:
            wrong.append(value)
    assert wrong == []


def test_statistics_of_a_channel_that_hardly_varies_are_kept() -> None:
    image = torch.full((1, 40, 50), 0.5)
    image[0, 3, 4] = 0.501
    with logged() as lines:
        _, std = estimate_statistics(MemorySource([image]), 0)
    assert std[0] == pytest.approx(float(image.double().std(correction=0)), rel=1e-4)
    assert lines == []


def test_statistics_are_a_function_of_the_seed() -> None:
    images = [torch.full((1, 2, 2), number / 3000) for number in range(SAMPLE + 500)]
    first, twin = MemorySource(images), MemorySource(images)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert estimate_statistics(first, 0) == estimate_statistics(twin, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(first.reads)) == len(first.reads) == SAMPLE
    assert estimate_statistics(MemorySource(images), 1) != estimate_statistics(MemorySource(images), 0)


def test_statistics_pass_over_images_that_cannot_be_read() -> None:
    images = random_images("uint8")
    some, every = (
        estimate_statistics(MemorySource([None, *images, None]), 0),
        estimate_statistics(MemorySource(images), 0),
    )
    for value, expected in zip(some, every, strict=True):
        assert value == pytest.approx(expected, abs=1e-6)


def test_statistics_without_a_readable_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DATA\.mean estimate: none .* kept train image \d: it is cut short"):
        estimate_statistics(MemorySource([None, None]), 0)
