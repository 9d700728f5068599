"""AUGMENT.on_device: the crops of the host path, cut out of whole images where these are, for every task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import DIGITS, FINETUNE, PROBE, RECIPE, TINY, call, losses
from small_data import digit, photograph, write_digits
from torch import Tensor

from mim import build, load_config
from mim.data.augment import ClassifyAugmentSettings
from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.loading.sampler import StepSampler
from mim.data.preprocess import Preprocess
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Stored
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, DeviceCropFlip, RandomCropFlip
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles
from mim.engine.plan import Plan
from mim.engine.prefetcher import Prefetcher
from mim.engine.protocol import StepContext, step_loss
from mim.ops.seeding import derive_seed

CPU = torch.device("cpu")
SIZE = (24, 20)
ON: dict[str, object] = {"AUGMENT.on_device": True}


class MemorySource(Source):
    """A source of images in memory."""

    name = "memory"

    def __init__(self, images: list[Stored]):
        super().__init__("train", DataSettings())
        self.images, self.labels = images, np.arange(len(images)) * 10

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Stored:
        return self.images[index]


def memory_source(kind: str) -> MemorySource:
    """Four images of one size and of a stored type."""
    photo = photograph(96, 140)
    pictures = [photo.crop((left, 2 * left, left + 60, 2 * left + 40)) for left in (0, 9, 20, 25)]
    levels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    kinds = {
        "picture": pictures,
        "uint8": levels,
        "uint16": [(level.int() * 257).to(torch.uint16) for level in levels],
        "float32": [level.float() / 7 - 20 for level in levels],
    }
    return MemorySource(kinds[kind])


def first_batch(source: Source, on_device: bool, repeats: int = 1, workers: int = 0, **keys) -> tuple[Tensor, Batch]:
    """The first batch of all the images, as the model sees them and as it travelled."""
    transform = (DeviceCropFlip if on_device else RandomCropFlip)(AugmentSettings(**keys), SIZE)
    data, rows = ImageDataset(source, transform, 3, repeats), repeats * len(source)
    order = StepSampler(len(source), rows, rows, 0, 1, 3, 0, 1, repeats=repeats)
    batch = next(batches(data, order, workers))
    return cropped(batch, **keys), batch


def cropped(batch: Batch, **keys) -> Tensor:
    preprocess = Preprocess((0.5,), (0.5,), AugmentSettings(**keys), SIZE)
    return preprocess.crop(batch.images_BCHW, batch.crops_B5)


# -------------------------------------------------------------------- the same crops


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("kind", ["picture", "uint8", "uint16", "float32"])
def test_device_augment_shows_the_crops_of_the_host(kind: str, repeats: int, interpolation: str) -> None:
    keys = {"repeats": repeats, "interpolation": interpolation}
    host_BCHW, on_host = first_batch(memory_source(kind), False, **keys)
    device_BCHW, on_device = first_batch(memory_source(kind), True, **keys)
    assert device_BCHW.dtype == host_BCHW.dtype
    assert device_BCHW.shape == host_BCHW.shape == (4 * repeats, 3, *SIZE)
    difference = (device_BCHW.double() - host_BCHW.double()).abs()
    assert difference.max() <= {"uint16": 1, "float32": 1e-4}.get(kind, 3)
    assert (difference > 1).double().mean() < 1e-3  # where Pillow resizes the other axis first
    assert torch.equal(on_device.labels, on_host.labels)
    assert (on_device.indices, on_device.broken) == (on_host.indices, on_host.broken)
    flips = on_device.crops_B5[:, 4].bool()
    assert flips.any()
    assert not flips.all()


@pytest.mark.parametrize("kind", ["picture", "uint16"])
def test_device_augment_sends_each_image_once_and_whole(kind: str) -> None:
    source = memory_source(kind)
    _, batch = first_batch(source, True, repeats=2)
    assert batch.images_BCHW.shape == (4, 3, 40, 60)
    assert batch.crops_B5.shape == (8, 5)
    assert len(batch.crops_B5.unique(dim=0)) == 8  # a crop of its own each time
    for position, index in enumerate(batch.indices[::2]):
        expected = source.images[index]
        expected = expected if isinstance(expected, Tensor) else torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        assert torch.equal(batch.images_BCHW[position], expected)
    transform = RandomCropFlip(AugmentSettings(), SIZE)
    seeds = [derive_seed(3, "augment", 0, batch.indices[row], *([1] if row % 2 else [])) for row in range(8)]
    crops = [transform.draw_crop(40, 60, seed) for seed in seeds]
    numbers = [[crop.top, crop.left, crop.height, crop.width, crop.flipped] for crop in crops]
    assert batch.crops_B5.tolist() == numbers


def test_device_augment_lets_another_image_stand_in_for_a_broken_one(tmp_path: Path) -> None:
    paths = write_digits(tmp_path, 6)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    source = Folder("train", DataSettings(path=str(tmp_path), channels=1), val_share=0, labels="none")
    host_BCHW, on_host = first_batch(source, False, repeats=2)
    device_BCHW, on_device = first_batch(source, True, repeats=2)
    assert [name for name, _ in on_device.broken] == [str(paths[2])]
    assert (on_device.indices, on_device.broken) == (on_host.indices, on_host.broken)
    assert (device_BCHW.int() - host_BCHW.int()).abs().max() <= 3


def test_device_augment_needs_nothing_of_images_that_are_cropped_already() -> None:
    """Random images of a rehearsal, and those of an evaluation."""
    batch = Batch(torch.zeros(2, 3, *SIZE), torch.zeros(2), (0, 1))
    assert cropped(batch) is batch.images_BCHW


def test_device_augment_crops_travel_with_their_batch() -> None:
    _, batch = first_batch(memory_source("uint8"), True)
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.images_BCHW, moved.labels, moved.crops_B5)} == {"meta"}
    assert moved.indices == batch.indices
    assert first_batch(memory_source("uint8"), False)[1].to(torch.device("meta")).crops_B5 is None


# -------------------------------------------------------------------- tasks


def first_loss(recipe: Path, keys: dict) -> float:
    """The loss of a run's first step, from its own prefetcher."""
    cfg = load_config(recipe, [str(word) for pair in ({"DATA.workers": 0} | keys).items() for word in pair])
    train, val = build.build_data(cfg)
    cfg = build.with_statistics(cfg, train)
    task, settings = build.build_task(cfg, train, val), build.engine_settings(cfg)
    plan, world = Plan.of(settings, len(task.train_data), 1), World(0, 1, CPU)
    prefetcher = Prefetcher(task.train_data, plan, world, 0, 0, BrokenFiles(len(task.train_data), 1.0))
    torch.manual_seed(0)
    return step_loss(
        task.loss(task.model.train(), prefetcher.next(), StepContext(cfg.SEED, 0, 0, plan.batch))
    ).loss.item()


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("recipe", [RECIPE, PROBE, FINETUNE], ids=lambda path: path.parent.name)
def test_device_augment_gives_the_loss_of_the_host_path(recipe: Path, repeats: int) -> None:
    keys: dict[str, object] = {"DATA.repeats": repeats, "ENCODER.width": 16, "ENCODER.depth": 1, "ENCODER.heads": 2}
    keys |= DIGITS
    if recipe == FINETUNE:
        keys |= {"AUGMENT.randaugment": "", "AUGMENT.jitter": 0}
    if recipe != RECIPE:
        keys |= {"READOUT.init_std": 0.5}  # scores that are far from uniform
    off, on, other = (first_loss(recipe, keys | more) for more in ({}, ON, {"SEED": 1}))
    assert on == pytest.approx(off, rel=1e-3)
    assert abs(off - other) > 3 * abs(on - off)  # other crops, masks and weights make a difference


@pytest.mark.slow
def test_device_augment_run_follows_the_run_without(tmp_path: Path) -> None:
    keys = TINY | {"DATA.workers": 1, "EVALUATE.knn": 0}
    for name, more in (("host", {}), ("device", ON)):
        code, output = call(tmp_path / name, keys | more)
        assert code == 0, output
    host, device = (losses(tmp_path / name) for name in ("host", "device"))
    assert device[0] == pytest.approx(host[0], rel=1e-4)
    assert device == pytest.approx(host, rel=1e-2)


@pytest.mark.parametrize(("key", "value"), [("randaugment", "rand-m9-mstd0.5-inc1"), ("jitter", 0.4)])
def test_device_augment_refuses_what_changes_crops_on_the_host(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"AUGMENT\.{key} is {value}: .* set AUGMENT\.on_device false, or AUGMENT"):
        ClassifyAugmentSettings(on_device=True, **{key: value})


# -------------------------------------------------------------------- images of two sizes


def folder_of(tmp_path: Path, odd: int, count: int = 40) -> Path:
    """Digits of 32 x 32 pixels, but for one."""
    images = tmp_path / "images"
    path = write_digits(images, count)[odd]
    digit().resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return images


def keys_of(images: Path) -> dict[str, object]:
    """Of a run on a folder."""
    data = {"name": "folder", "path": images, "val_share": 0.1, "batch_size": 8, "workers": 1}
    return TINY | ON | {f"DATA.{key}": value for key, value in data.items()} | {"TRAIN.batch": 8}


def test_device_augment_names_images_of_two_sizes_before_the_run(tmp_path: Path) -> None:
    images = folder_of(tmp_path, odd=39)
    source = Folder("train", DataSettings(path=str(images), channels=1), val_share=0)
    data = ImageDataset(source, DeviceCropFlip(AugmentSettings(), SIZE), 0)
    with pytest.raises(ValueError, match=r"AUGMENT\.on_device needs images of one size") as error:
        data.check_sizes(images=40)
    assert f"{images / 'digit-000.png'} of 32 x 32 pixels" in str(error.value)
    assert f"{images / 'digit-039.png'} of 40 x 48 pixels" in str(error.value)
    ImageDataset(source, RandomCropFlip(AugmentSettings(), SIZE), 0).check_sizes(images=40)  # which any sizes suit


@pytest.mark.parametrize("odd", [0, 39])  # seen before the run, and in it
def test_device_augment_run_on_images_of_two_sizes_ends_with_both_named(tmp_path: Path, odd: int) -> None:
    code, output = call(tmp_path / "run", keys_of(folder_of(tmp_path, odd)) | {"DATA.val_share": 0})
    assert code == 2
    assert "error: " in output
    assert "AUGMENT.on_device needs images of one size" in output
    assert f"digit-{odd:03d}.png of 40 x 48 pixels" in output
    assert "set AUGMENT.on_device false" in output
