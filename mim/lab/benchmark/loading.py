"""The training loader of a config alone, on one core, compared with torchvision's published pipeline."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from mim.build import load_config
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.description import crops_text
from mim.data.loading.loader import batches
from mim.data.loading.sampler import StepSampler
from mim.lab.benchmark.contenders import training_images
from mim.lab.benchmark.machine import Machine, theme_of
from mim.lab.dryrun.task import dry_task

BATCH = 64
ENDLESS = 10**9  # steps
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingResult:
    """Images per second of the loader and of torchvision's pipeline."""

    theme: str  # names the config
    machine: Machine
    date: datetime
    source: str  # DATA.name
    crops: str  # the crops of ours, as text
    images: int  # number of training images
    files: Path  # the folder that torchvision read
    images_per_s: dict[str, tuple[float, ...]]  # of each round, by contender: `ours` and `torchvision`

    @property
    def ratio(self) -> float:
        """The quotient of the medians."""
        return median(self.images_per_s["ours"]) / median(self.images_per_s["torchvision"])

    @property
    def ratios(self) -> list[float]:
        """The quotient of each round."""
        return [ours / other for ours, other in zip(*self.images_per_s.values(), strict=True)]


def benchmark_loading(config: str | Path, overrides: Sequence[str], files: Path | None, rounds: int) -> LoadingResult:
    """Measures how fast the training images of a config are read, decoded, cropped and batched on one core.

    files: class folders for torchvision; None for those of the config. Raises ValueError for what the user can mend.
    """
    cfg = load_config(config, overrides)
    images = training_images(dry_task(cfg), "--data")
    if files is None:
        if not cfg.DATA.path or not Path(cfg.DATA.path).is_dir():
            raise ValueError(f"--data: DATA.path {cfg.DATA.path!r} is not a folder: give --files DIR for torchvision")
        files = Path(cfg.DATA.path)
        files = files / "train" if (files / "train").is_dir() else files
    size = tuple(cfg.DATA.image_size)
    return LoadingResult(
        theme=f"{theme_of(config)}_loader",
        machine=Machine.here(torch.device("cpu")),
        date=datetime.now(),
        source=cfg.DATA.name,
        crops=crops_text(size, cfg.AUGMENT) + (f"; {images.repeats} of each image" if images.repeats > 1 else ""),
        images=len(images),
        files=files,
        images_per_s=measure_loading(images, files, size, rounds=rounds),
    )


def measure_loading(
    dataset: ImageDataset, folder: Path, size: tuple[int, int], *, rounds: int = 5, seconds: float = 2.0
) -> dict[str, tuple[float, ...]]:
    """Images per second of each round, of `ours` and of `torchvision`.

    Both run in this process on one thread, after a round that is not timed. Ours ends in batches of stored images,
    which training normalises on its device. The published pipeline ends in batches of normalised floats.

    Args:
        dataset: of ours, as training reads it. Each crop of an image counts as an image.
        folder: class folders with the files of `dataset`, for torchvision's ImageFolder.
        size: height and width of the published pipeline's crops.
        seconds: of each contender in a round.

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
            published = published_images(folder, size)
            contenders = {"ours": our_batches(dataset), "torchvision": published_batches(published)}
            rates: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(1 + rounds):
                for name, counts in contenders.items():
                    rates[name].append(_rate(counts, seconds))
    except OSError as error:
        raise ValueError(f"{folder}: torchvision's pipeline cannot read an image of it ({error})") from error
    finally:
        torch.set_num_threads(threads)
    return {name: tuple(values[1:]) for name, values in rates.items()}


def _rate(counts: Iterator[int], seconds: float) -> float:
    """Images per second, over at least this many seconds."""
    images, start, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < seconds:
        images += next(counts)
        elapsed = time.perf_counter() - start
    return images / elapsed


def our_batches(dataset: ImageDataset) -> Iterator[int]:
    """Reads batches in the order of training, and yields the number of images of each."""
    for batch in batches(dataset, our_order(dataset), workers=0, pin_memory=False):
        yield len(batch.indices)


def our_order(dataset: ImageDataset) -> StepSampler:
    """Batches of about BATCH crops without end."""
    repeats = dataset.repeats
    rows = min(max(1, BATCH // repeats), len(dataset)) * repeats
    return StepSampler(len(dataset), rows, rows, 0, 1, dataset.seed, 0, ENDLESS, repeats=repeats)


def published_images(folder: Path, size: tuple[int, int]) -> ImageFolder:
    """The images of class folders for the published pipeline. Raises ValueError where there are none."""
    try:
        return ImageFolder(str(folder), published_transform(size))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: torchvision's ImageFolder reads class folders ({error})") from error


def published_batches(images: ImageFolder) -> Iterator[int]:
    """Reads batches epoch after epoch, and yields the number of images of each."""
    loader = DataLoader(images, min(BATCH, len(images)), shuffle=True, drop_last=True, generator=torch.Generator())
    while True:
        for images_BCHW, _ in loader:
            yield len(images_BCHW)


def published_transform(size: tuple[int, int]) -> Callable:
    """From a PIL image to a normalised tensor. Source: MAE, main_pretrain.py."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET),
        ]
    )
