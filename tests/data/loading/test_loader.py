"""From samples to batches: the same bits with any number of workers, and broken files that harm no other."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_digits
from torch.utils.data._utils.pin_memory import pin_memory

from mim.data.batch import Batch
from mim.data.loading.dataset import ATTEMPTS, ImageDataset, Sample, collate
from mim.data.loading.loader import _Answer, batches, in_order
from mim.data.loading.sampler import StepSampler
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, CentreCrop, DeviceCropFlip, RandomCropFlip
from mim.errors import DataLost

SIZE = (16, 16)


def folder(path: Path) -> Folder:
    return Folder("train", DataSettings(path=str(path), channels=1), val_share=0)


def dataset(source: Folder | Digits, seed: int = 0) -> ImageDataset:
    return ImageDataset(source, RandomCropFlip(AugmentSettings(), SIZE), seed)


def steps(samples: int, batch: int = 6, stop: int = 4) -> StepSampler:
    return StepSampler(samples, batch, batch, 0, 1, 0, 0, stop)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two class folders of real digits, 24 JPEGs in all."""
    write_digits(tmp_path / "a", 12, suffix=".jpg")
    write_digits(tmp_path / "b", 12, first=12, suffix=".jpg")
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


# -------------------------------------------------------------------- batches


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_batches_are_the_same_bits_with_any_number_of_workers(images: Path, workers: int) -> None:
    truncate(images / "a" / "digit-003.jpg")
    data = dataset(folder(images))
    torch.manual_seed(1)
    alone = list(batches(data, steps(24, stop=6), 0, False))
    torch.manual_seed(2)
    shared = list(batches(data, steps(24, stop=6), workers, False))
    assert len(alone) == len(shared) == 6
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.images_BCHW, two.images_BCHW)
        assert torch.equal(one.labels, two.labels)
        assert one.indices == two.indices
        assert one.broken == two.broken


def test_loader_leaves_the_global_generator_untouched(images: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(batches(dataset(folder(images)), steps(24), 0, False))
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_augmentation_depends_on_seed_epoch_and_index_alone(images: Path) -> None:
    data = dataset(folder(images))
    twin, other = dataset(folder(images)), dataset(folder(images), seed=1)
    assert torch.equal(data[2, 5].image_CHW, twin[2, 5].image_CHW)
    assert not torch.equal(data[2, 5].image_CHW, data[3, 5].image_CHW)
    assert not torch.equal(data[2, 5].image_CHW, other[2, 5].image_CHW)


def test_loader_batch_carries_labels_and_indices(images: Path) -> None:
    source = folder(images)
    for batch in batches(dataset(source), steps(24), 0, False):
        assert batch.images_BCHW.shape == (6, 1, *SIZE)
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [int(source.labels[index]) for index in batch.indices]
        assert batch.broken == ()


def test_loader_label_is_minus_one_where_there_is_none(tmp_path: Path) -> None:
    write_digits(tmp_path, 6)
    (batch,) = batches(dataset(folder(tmp_path)), steps(6, stop=1), 0, False)
    assert batch.labels.tolist() == [-1] * 6


def test_loader_evaluation_batches_come_in_order_with_the_last_one_smaller() -> None:
    source = Digits("val", DataSettings(channels=1))
    data = ImageDataset(source, CentreCrop(AugmentSettings(), (32, 32)), 0)
    evaluation: Iterator[Batch] = batches(data, in_order(range(10), 4), 0, False)
    assert [batch.indices for batch in evaluation] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert list(in_order([], 4)) == []
    assert list(in_order([3, 1], 2)) == [[(0, 3), (0, 1)]]


# -------------------------------------------------------------------- broken files


def test_loader_corrupt_image_is_replaced_and_named_and_no_other_changes(images: Path) -> None:
    keys = [[(0, index) for index in range(24)]]
    (good,) = batches(dataset(folder(images)), keys, 0, False)
    corrupt = images / "a" / "digit-003.jpg"
    truncate(corrupt)
    (batch,) = batches(dataset(folder(images)), keys, 0, False)
    stand_in = batch.indices[3]
    assert batch.indices == (*range(3), stand_in, *range(4, 24))
    assert stand_in != 3
    assert [name for name, _ in batch.broken] == [str(corrupt)]
    assert "OSError" in batch.broken[0][1]
    assert torch.equal(batch.images_BCHW[3], good.images_BCHW[stand_in])
    others = [row for row in range(24) if row != 3]
    assert torch.equal(batch.images_BCHW[others], good.images_BCHW[others])
    assert batch.labels.tolist() == [int(index >= 12) for index in batch.indices]


def test_loader_stand_in_brings_its_own_label_and_is_drawn_from_the_whole_data_set(images: Path) -> None:
    """The neighbours of an image in a class folder are all of its class."""
    truncate(images / "a" / "digit-011.jpg")
    data = dataset(folder(images))
    samples = [data[epoch, 11] for epoch in range(100)]
    assert all(sample.labels == (int(sample.index >= 12),) for sample in samples)
    assert 11 not in {sample.index for sample in samples}
    assert len({sample.index for sample in samples}) == 23
    assert 30 < sum(sample.labels[0] for sample in samples) < 74  # half of them, by 4 standard deviations
    assert [data[epoch, 11].index for epoch in range(100)] == [sample.index for sample in samples]
    assert [dataset(folder(images), seed=1)[epoch, 11].index for epoch in range(100)] != [s.index for s in samples]


def test_loader_stand_in_that_is_broken_too_is_named_and_replaced(images: Path) -> None:
    intact = images / "b" / "digit-020.jpg"
    for path in sorted(images.glob("*/*.jpg")):
        if path != intact:
            truncate(path)
    attempts = []
    for epoch in range(40):
        try:
            sample = dataset(folder(images))[epoch, 4]
        except DataLost:
            continue
        assert sample.index == 20
        names = [name for name, _ in sample.broken]
        assert len(set(names)) == len(names) < ATTEMPTS
        assert names[0] == str(images / "a" / "digit-004.jpg")
        assert str(intact) not in names
        attempts.append(len(names))
    assert 20 < len(attempts) < 40  # 20 of 24 are tried
    assert len(set(attempts)) > 5


def test_loader_many_broken_neighbours_end_nothing(images: Path) -> None:
    for path in sorted(images.glob("*/*.jpg"))[:ATTEMPTS]:
        path.write_bytes(b"")
    data = dataset(folder(images))
    for epoch in range(3):
        for index in range(ATTEMPTS):
            with suppress(DataLost):  # where the four whole ones are not among the 20 that are tried: 1 in 10,626
                assert data[epoch, index].index >= ATTEMPTS


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_20_in_a_row_that_cannot_be_read_are_told_in_one_line(images: Path, workers: int) -> None:
    for path in images.glob("*/*.jpg"):
        path.write_bytes(b"")
    data = dataset(folder(images))
    with pytest.raises(DataLost, match=r"^20 images in a row cannot be read, one and those drawn") as caught:
        list(batches(data, [[(0, 0)]], workers, False))
    assert f"{images / 'a' / 'digit-000.jpg'} (UnidentifiedImageError: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "DataLoader" not in str(caught.value)


def test_loader_small_data_set_tries_each_image_once(tmp_path: Path) -> None:
    paths = write_digits(tmp_path, 3)
    for path in paths[:2]:
        path.write_bytes(b"")
    assert {dataset(folder(tmp_path))[epoch, 0].index for epoch in range(20)} == {2}
    paths[2].write_bytes(b"")
    with pytest.raises(DataLost, match="3 images in a row cannot be read"):
        dataset(folder(tmp_path))[0, 0]


# -------------------------------------------------------------------- types


def test_loader_mixed_types_in_a_batch_are_refused(tmp_path: Path) -> None:
    write_digits(tmp_path, 2)
    np.save(tmp_path / "scan.npy", np.zeros((32, 32), dtype=np.float32))
    keys = [[(0, 0), (0, 1), (0, 2)]]
    with pytest.raises(ValueError, match=r"torch\.float32 and torch\.uint8: use one type"):
        list(batches(dataset(folder(tmp_path)), keys, 0, False))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_loader_batches_keep_the_stored_type(tmp_path: Path, dtype: str) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((32, 32), 7 * number, dtype=dtype))
    (batch,) = batches(dataset(folder(tmp_path)), steps(3, batch=3, stop=1), 0, False)
    assert batch.images_BCHW.dtype == getattr(torch, dtype)
    values = batch.images_BCHW.to(torch.float64).flatten(1)
    assert torch.allclose(values, values[:, :1].expand_as(values), atol=1e-3)
    assert values[:, 0].round().tolist() == [7 * index for index in batch.indices]


def test_collate_joins_what_the_samples_stand_in_for() -> None:
    image_CHW = torch.zeros(1, 2, 2, dtype=torch.uint8)
    samples = [
        Sample(image_CHW, (3,), 8, (("x", "gone"),)),
        Sample(image_CHW + 1, (4,), 9, ()),
        Sample(image_CHW, (5,), 1, (("y", "cut"), ("z", "cut"))),
    ]
    batch = collate(samples)
    assert batch.indices == (8, 9, 1)
    assert batch.labels.tolist() == [3, 4, 5]
    assert batch.broken == (("x", "gone"), ("y", "cut"), ("z", "cut"))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, -3.4028235e38])
@pytest.mark.parametrize("crop", [RandomCropFlip, DeviceCropFlip, CentreCrop])
def test_image_that_is_not_finite_is_broken(tmp_path: Path, bad: float, crop: type) -> None:
    """The no-data value that GDAL gives floats is finite, but float32 has no square of it."""
    values_HW = np.zeros((32, 32), dtype=np.float32)
    np.save(tmp_path / "good.npy", values_HW)
    np.save(tmp_path / "large.npy", values_HW + 1e6)
    values_HW[0, 31] = bad  # the whole file counts, not the crop
    np.save(tmp_path / "bad.npy", values_HW)
    data = ImageDataset(folder(tmp_path), crop(AugmentSettings(), SIZE), 0)
    batch = data.batch([(0, index) for index in range(3)])
    names = [data.source.describe(index).rpartition("/")[2] for index in range(3)]
    assert [name.rpartition("/")[2] for name, _ in batch.broken] == ["bad.npy"]
    assert batch.indices[names.index("bad.npy")] != names.index("bad.npy")
    assert batch.images_BCHW.isfinite().all()
    reason = "float32 has no square" if bad == -3.4028235e38 else "1 of its 1,024 pixel values are infinite"
    assert reason in batch.broken[0][1]


# -------------------------------------------------------------------- on the way to a GPU


def test_pytorchs_pinning_reaches_the_batch_of_a_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Batch] = []

    def pin(batch: Batch) -> Batch:
        pinned.append(batch)
        return replace(batch, labels=batch.labels + 100)

    monkeypatch.setattr(Batch, "pin_memory", pin)
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2), (0, 1))
    for answer in (batch, _Answer(batch, None, [])):
        result = pin_memory(answer)
        assert (result if answer is batch else result.result).labels.tolist() == [100, 100]
    failed = _Answer(None, ValueError("no"), [])
    assert pin_memory(failed) is failed
    assert len(pinned) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_loader_pins_batches_for_a_gpu_and_keeps_their_order(images: Path, workers: int) -> None:
    data = dataset(folder(images))
    plain = list(batches(data, steps(24, stop=12), 0))
    pinned = list(batches(data, steps(24, stop=12), workers, pin_memory=True))
    assert [batch.indices for batch in pinned] == [batch.indices for batch in plain]
    for one, two in zip(pinned, plain, strict=True):
        assert one.images_BCHW.is_pinned()
        assert one.labels.is_pinned()
        assert torch.equal(one.images_BCHW, two.images_BCHW)
        assert torch.equal(one.labels, two.labels)


# -------------------------------------------------------------------- files that turned into another type


def test_loader_image_that_damage_made_one_of_another_type_is_broken(tmp_path: Path) -> None:
    write_digits(tmp_path, 23)
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(tmp_path / "odd.png")
    data = dataset(folder(tmp_path))
    (batch,) = batches(data, [[(0, index) for index in range(24)]], 0, False)
    assert batch.images_BCHW.dtype == torch.uint8
    assert batch.indices[23] < 23
    reason = "it is stored as torch.uint16, and the others as torch.uint8"
    assert batch.broken == ((str(tmp_path / "odd.png"), reason),)
