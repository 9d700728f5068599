"""The training loader alone, in turns with torchvision's published pipeline, on one core."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from mim.data.loading.loader import ImageDataset, batches
from mim.data.loading.sampler import StepSampler

BATCH = 64
ENDLESS = 10**9  # steps
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Images a second on one core, ours and the published pipeline's, one entry a round; both ran in every round."""

    ours: tuple[float, ...]
    published: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast ours was, round by round."""
        return tuple(one / two for one, two in zip(self.ours, self.published, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios; their least and largest are its spread."""
        return median(self.ratios)


def measure_loading(
    dataset: ImageDataset, folder: Path, size: tuple[int, int], *, rounds: int = 5, seconds: float = 2.0
) -> Loading:
    """Images a second of `dataset`, as training reads it, and of torchvision's ImageFolder on `folder`, in turns.

    Both run in this process on one thread, after an untimed round. Ours ends in batches of stored images, which
    training normalises on its device; the published pipeline ends in batches of normalised floats.

    Args:
        dataset: crops count as images where it repeats them.
        folder: class folders of images, the files that `dataset` reads or was packed from.
        size: height and width of the published pipeline's crops.
        seconds: of each of the two in every round.

    Raises ValueError where there are no images, or ImageFolder cannot read `folder`.
    """
    if rounds < 1 or seconds <= 0:
        raise ValueError(f"rounds is {rounds} and seconds {seconds}: both must be positive")
    if not len(dataset):
        raise ValueError("there are no training images to measure")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):  # the published transform draws from the global generator
            sides = _ours(dataset), _published(folder, size)
            for side in sides:
                _rate(side, seconds)
            found = [[_rate(side, seconds) for side in sides] for _ in range(rounds)]
    except OSError as error:
        raise ValueError(f"{folder}: torchvision's pipeline cannot read an image of it ({error})") from error
    finally:
        torch.set_num_threads(threads)
    return Loading(ours=tuple(one for one, _ in found), published=tuple(two for _, two in found))


def _rate(side: Iterator[int], seconds: float) -> float:
    """Images a second over at least so many seconds."""
    images, start, spent = 0, time.perf_counter(), 0.0
    while spent < seconds:
        images += next(side)
        spent = time.perf_counter() - start
    return images / spent


def _ours(dataset: ImageDataset) -> Iterator[int]:
    """Reads a batch a step, in the order of training, and says how many images it has."""
    repeats = dataset.repeats
    rows = min(max(1, BATCH // repeats), len(dataset)) * repeats
    order = StepSampler(len(dataset), rows, rows, 0, 1, dataset.seed, 0, ENDLESS, repeats=repeats)
    for batch in batches(dataset, order, workers=0, pin_memory=False):
        yield len(batch.indices)


def _published(folder: Path, size: tuple[int, int]) -> Iterator[int]:
    """The same of the published pipeline. Source: MAE, main_pretrain.py."""
    steps: list[Callable] = [
        transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(**IMAGENET),
    ]
    try:
        images = ImageFolder(str(folder), transforms.Compose(steps))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder}: torchvision's ImageFolder, which the loader is compared with, reads class folders ({error})"
        ) from error
    loader = DataLoader(images, min(BATCH, len(images)), shuffle=True, drop_last=True, generator=torch.Generator())
    while True:
        for images_BCHW, _ in loader:
            yield len(images_BCHW)
