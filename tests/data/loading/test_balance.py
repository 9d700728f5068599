"""LABELS.balance: each class equally often in an epoch, whatever the number of devices and wherever a run resumes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from label_files import join, write_images, write_table
from small_data import logged

from mim.data.labels.settings import LabelSettings
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.sampler import REPETITION, StepSampler, balanced_order
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.data.sources.subset import few_labels
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles
from mim.engine.plan import Plan
from mim.engine.prefetcher import Prefetcher

LABELS = np.array([0] * 60 + [1] * 30 + [3] * 7 + [2] * 3)  # 100 samples of 4 classes


def steps(
    rank: int = 0, world: int = 1, micro: int = 20, start: int = 0, stop: int = 15
) -> list[list[tuple[int, int]]]:
    return list(StepSampler(len(LABELS), 20, micro, rank, world, 5, start, stop, label_N=LABELS))


def uneven(folder: Path) -> Path:
    """A table of eight digits, one of them of a rare class."""
    write_images(folder)
    rows = [f"digit-00{number}.png,{'rare' if number == 1 else 'usual'},{number / 8}" for number in range(8)]
    return write_table(folder, "path,class,wear", rows)


def test_balanced_epochs_have_each_class_equally_often() -> None:
    keys = steps()
    assert list(map(len, keys)) == [20] * 15
    for epoch in range(3):
        epoch_keys = [key for step in keys[5 * epoch : 5 * epoch + 5] for key in step]
        assert Counter(int(LABELS[index]) for _, index in epoch_keys) == dict.fromkeys(range(4), 25)
        assert {key[0] % REPETITION for key in epoch_keys} == {epoch}
        rare = Counter(index for _, index in epoch_keys if LABELS[index] == 2)
        assert sorted(rare.values()) == [8, 8, 9]
    assert len({index for step in keys for _, index in step if LABELS[index] == 0}) > 40  # 25 others in each epoch


def test_balanced_samples_that_return_have_an_augmentation_of_their_own() -> None:
    keys = [key for step in steps(stop=5) for key in step]
    assert len(set(keys)) == len(keys)
    digits = Digits("train", DataSettings(channels=1))
    data = ImageDataset(digits, RandomCropFlip(AugmentSettings(), (32, 32)), 0)
    first, again, other = (data[key, 7].image_CHW for key in (0, REPETITION, 1))
    assert not torch.equal(first, again)
    assert not torch.equal(again, other)


@pytest.mark.parametrize(("world", "micro"), [(1, 5), (2, 10), (4, 5)])
def test_balanced_batches_are_the_same_on_any_number_of_devices_and_after_a_resume(world: int, micro: int) -> None:
    parts = [steps(rank, world, micro) for rank in range(world)]
    micros = 20 // (micro * world)
    for step, whole in enumerate(steps()):
        joined = [key for part in range(micros) for rank in range(world) for key in parts[rank][step * micros + part]]
        assert joined == whole
    assert steps(start=7) == steps()[7:]


def test_balanced_order_of_uneven_numbers_differs_by_one() -> None:
    labels = np.array([0] * 9 + [1] * 1 + [-1])
    index_N, repetition_N = balanced_order(labels, torch.Generator().manual_seed(0))
    assert sorted(np.bincount(labels[index_N]).tolist()) == [5, 6]
    assert repetition_N[labels[index_N] == 1].sort().values.tolist() == list(range(int((labels[index_N] == 1).sum())))
    assert repetition_N[labels[index_N] == 0].tolist() == [0] * int((labels[index_N] == 0).sum())


def test_balance_is_for_classes_and_follows_the_labels_of_a_table(tmp_path: Path) -> None:
    file = uneven(tmp_path)
    with logged():
        train, _ = join(tmp_path, val_share=0, file=file, columns=("class",))
    data = ImageDataset(
        few_labels(train, LabelSettings(count=6)), RandomCropFlip(AugmentSettings(), (32, 32)), 0, balance=True
    )
    order = StepSampler(len(data), 6, 6, 0, 1, data.seed, 0, 1, label_N=data.balanced_labels)
    (keys,) = order
    assert Counter(int(data.source.labels[index]) for _, index in keys) == {0: 3, 1: 3}
    numbers, _ = join(tmp_path, val_share=0, file=file, columns=("wear",))
    with pytest.raises(ValueError, match=r"LABELS\.balance is for labels of kind class, and these are of kind number"):
        ImageDataset(numbers, RandomCropFlip(AugmentSettings(), (32, 32)), 0, balance=True)


def test_balance_reaches_the_batches_of_a_run(tmp_path: Path) -> None:
    train, _ = join(tmp_path, val_share=0, file=uneven(tmp_path), columns=("class",))
    data = ImageDataset(train, RandomCropFlip(AugmentSettings(), (32, 32)), 0, balance=True)
    prefetcher = Prefetcher(data, Plan(8, 4, 1, 2, 2, 1), World(0, 1, torch.device("cpu")), 0, 0, BrokenFiles(8, 1.0))
    labels = torch.cat([prefetcher.next().labels for _ in range(4)])
    assert labels.reshape(2, 8).sum(dim=1).tolist() == [4, 4]
