"""DATA.repeats: an image is read once an epoch and shown several times, with a crop and a mask of its own each time."""

from pathlib import Path

import pytest
import torch
from processes import TINY, call, losses, summary
from small_data import write_digits

from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.loading.sampler import SampleKey, StepSampler
from mim.data.settings import DataSettings
from mim.data.sources.base import Need, Stored
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.ops.seeding import derive_seed

SAMPLES, BATCH, REPEATS = 26, 24, 3  # 3 steps an epoch, of 8 images each


class Counted(Folder):
    """A folder that remembers what was read, and what was needed of images of 400 x 300."""

    name = "counted"

    def __init__(self, path: Path):
        super().__init__("train", DataSettings(path=str(path), channels=1), val_share=0)
        self.reads: list[int] = []
        self.needs: list[Need] = []

    def read_reduced(self, index: int, need_of) -> tuple[Stored, tuple[int, int]]:
        self.reads.append(index)
        self.needs.append(need_of(400, 300))
        return super().read_reduced(index, need_of)


def dataset(source: Folder, repeats: int) -> ImageDataset:
    return ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 5, repeats)


def rows(micro: int, rank: int, world: int, start: int = 0, stop: int = 9) -> list[list[SampleKey]]:
    return list(StepSampler(SAMPLES, BATCH, micro, rank, world, 0, start, stop, repeats=REPEATS))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_digits(tmp_path, 12, suffix=".jpg")
    return tmp_path


# -------------------------------------------------------------------- order


def test_repeats_epoch_names_each_image_once() -> None:
    keys = [key for batch in rows(BATCH, 0, 1, stop=3) for key in batch]
    assert {epoch for epoch, _ in keys} == {0}
    assert len(keys) == len(set(keys)) == 3 * BATCH // REPEATS
    assert rows(BATCH, 0, 1)[3][0][0] == 1


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 3), (2, 6), (2, 3), (4, 6), (8, 3)])
def test_repeats_ranks_and_micro_batches_together_make_the_global_batch(world: int, micro: int) -> None:
    ranks = [rows(micro, rank, world) for rank in range(world)]
    turns = BATCH // (micro * world)
    for step, batch in enumerate(rows(BATCH, 0, 1)):
        parts = [ranks[rank][step * turns + turn] for turn in range(turns) for rank in range(world)]
        assert all(len(part) == micro // REPEATS for part in parts)
        assert [key for part in parts for key in part] == batch


@pytest.mark.parametrize("start", [1, 3, 5])
def test_repeats_sampler_that_starts_later_gives_the_tail(start: int) -> None:
    assert rows(6, 1, 2, start=start) == rows(6, 1, 2)[2 * start :]


def test_repeats_of_one_change_no_order() -> None:
    plain, one = (StepSampler(SAMPLES, 8, 4, 1, 2, 0, 0, 9, **keys) for keys in ({}, {"repeats": 1}))
    assert list(plain) == list(one)
    assert [batch[:1] for batch in plain] == [batch[:1] for batch in StepSampler(SAMPLES, 24, 12, 1, 2, 0, 0, 9, 3)]


# -------------------------------------------------------------------- rows


def test_repeats_read_each_image_once_for_neighbouring_rows(images: Path) -> None:
    source = Counted(images)
    (batch,) = batches(dataset(source, 3), [[(0, 4), (0, 9)]], 0, False)
    assert source.reads == [4, 9]
    assert batch.indices == (4, 4, 4, 9, 9, 9)
    assert batch.images_BCHW.shape == (6, 1, 16, 16)
    assert len(batch.labels) == 6
    assert len({tuple(image.flatten().tolist()) for image in batch.images_BCHW}) == 6


def test_repeats_first_crop_is_that_of_a_run_without_and_the_others_have_seeds_of_their_own(images: Path) -> None:
    source, crops = Counted(images), []
    for repeats in (1, 2, 4):
        (batch,) = batches(dataset(source, repeats), [[(3, 7), (3, 8)]], 0, False)
        crops.append(batch.images_BCHW.unflatten(0, (2, repeats)))
    assert torch.equal(crops[0], crops[1][:, :1])
    assert torch.equal(crops[1], crops[2][:, :2])
    transform, picture = dataset(source, 1).transform, source.read(7)
    for repeat, image_CHW in enumerate(crops[2][0]):
        key = (3, 7, repeat) if repeat else (3, 7)
        expected_CHW = transform(picture, derive_seed(5, "augment", *key))
        assert (image_CHW.int() - expected_CHW.int()).abs().max() <= 2  # Pillow resizes pictures


def test_repeats_decode_what_the_largest_and_the_lowest_crop_need(images: Path) -> None:
    source, data = Counted(images), dataset(Counted(images), 4)
    data.source = source
    list(batches(data, [[(0, index) for index in range(12)]], 0, False))
    for index, need in enumerate(source.needs):
        keys = [(0, index), *((0, index, repeat) for repeat in (1, 2, 3))]
        seeds = [derive_seed(5, "augment", *key) for key in keys]
        each = [data.transform.need_of(data.transform.draw_crop(400, 300, seed), (400, 300)) for seed in seeds]
        assert need == Need(min(one.reduction for one in each), max(one.rows for one in each))
        assert len({one.reduction for one in each}) > 1


def test_repeats_stand_in_for_a_broken_file_in_all_its_rows_and_name_it_once(images: Path) -> None:
    broken = images / "digit-004.jpg"
    broken.write_bytes(b"")
    (batch,) = batches(dataset(Counted(images), 2), [[(0, 4), (0, 6)]], 0, False)
    stand_in = batch.indices[0]
    assert stand_in != 4
    assert batch.indices == (stand_in, stand_in, 6, 6)
    assert [name for name, _ in batch.broken] == [str(broken)]
    (other,) = batches(dataset(Counted(images), 2), [[(0, stand_in)]], 0, False)
    assert torch.equal(batch.images_BCHW[:2], other.images_BCHW)


def test_repeats_are_the_same_bits_with_any_number_of_workers(images: Path) -> None:
    order = [[(epoch, index) for index in (1, 5, 2)] for epoch in range(3)]
    alone, shared = (list(batches(dataset(Counted(images), 2), order, workers, False)) for workers in (0, 2))
    assert len(alone) == 3
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.images_BCHW, two.images_BCHW)
        assert one.indices == two.indices


# -------------------------------------------------------------------- runs


def test_repeats_must_divide_the_micro_batch() -> None:
    with pytest.raises(ValueError, match=r"DATA\.batch_size is 64 and DATA\.repeats 3: .*multiple of DATA\.repeats"):
        DataSettings(batch_size=64, repeats=3)
    with pytest.raises(ValueError, match=r"DATA\.repeats is 0: it must be at least 1"):
        DataSettings(repeats=0)
    assert DataSettings(batch_size=63, repeats=3).repeats == 3


LARGE = TINY | {"TRAIN.batch": 512, "DATA.batch_size": 512, "DATA.workers": 0, "EVALUATE.every_epochs": 0}


def test_repeats_make_an_epoch_longer(tmp_path: Path) -> None:
    """1,437 digits x 2 in batches of 512."""
    code, text = call(tmp_path, LARGE | {"DATA.repeats": 2})
    assert code == 0, text
    metrics = summary(tmp_path)
    assert (metrics["steps"], metrics["images_seen"], metrics["epochs"]) == (5, 5 * 512, 1)


@pytest.mark.slow
def test_repeats_train_alike_whatever_the_micro_batch(tmp_path: Path) -> None:
    curves = []
    for rows in (512, 128):
        code, text = call(tmp_path / str(rows), LARGE | {"DATA.repeats": 4, "DATA.batch_size": rows})
        assert code == 0, text
        curves.append(losses(tmp_path / str(rows)))
    assert len(curves[0]) == 11
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_repeats_of_too_few_images_for_a_step_are_refused(tmp_path: Path) -> None:
    code, text = call(tmp_path, LARGE | {"DATA.repeats": 2, "DATA.batch_size": 4096, "TRAIN.batch": 4096})
    assert code == 2
    assert "1437 training images x DATA.repeats 2, fewer than the 4096 of one step (TRAIN.batch)" in text
