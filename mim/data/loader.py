"""From samples to batches: reading, transforming, standing in for broken files, and loader processes.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mim.data.base import Source, Stored
from mim.data.images import BrokenImage
from mim.data.sampler import SampleKey
from mim.ops.seeding import derive_seed
from mim.structures import Batch

ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One transformed image (C, H, W) with its label, its index, and the files that it stands in for."""

    image_CHW: Tensor
    label: int
    index: int
    broken: tuple[tuple[str, str], ...]


class ImageDataset(Dataset[Sample]):
    """A source under a transform. A sample's augmentation depends on (seed, epoch, index) alone.

    A broken file is replaced by the next one that can be read, and named in the sample. Raises RuntimeError, with
    the names, where 20 in a row cannot be read.
    """

    def __init__(self, source: Source, transform: Callable[[Stored, int], Tensor], seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        broken: list[tuple[str, str]] = []
        for attempt in range(min(ATTEMPTS, len(self.source))):
            chosen = (index + attempt) % len(self.source)
            try:
                stored = self.source.read(chosen)
            except BrokenImage as error:
                broken.append((self.source.describe(chosen), str(error)))
                continue
            image_CHW = self.transform(stored, derive_seed(self.seed, "augment", epoch, chosen))
            label = -1 if self.source.labels is None else int(self.source.labels[chosen])
            return Sample(image_CHW, label, chosen, tuple(broken))
        names = "\n".join(f"  {name}: {reason}" for name, reason in broken[:5])
        raise RuntimeError(f"{len(broken)} images in a row cannot be read; the first of them:\n{names}")

    def is_finite(self, index: int) -> bool:
        """Whether a stored image has only finite values. One that cannot be read is not the culprit."""
        try:
            stored = self.source.read(index)
        except BrokenImage:
            return True
        return not isinstance(stored, Tensor) or bool(torch.isfinite(stored.float()).all())


def collate(samples: list[Sample]) -> Batch:
    """Samples to a batch. Raises ValueError where images are stored in different types."""
    types = {sample.image_CHW.dtype for sample in samples}
    if len(types) > 1:
        raise ValueError(f"images of one batch are stored as {' and '.join(sorted(map(str, types)))}: use one type")
    return Batch(
        torch.stack([sample.image_CHW for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        tuple(sample.index for sample in samples),
        tuple(file for sample in samples for file in sample.broken),
    )


def batches(dataset: ImageDataset, order: Iterable[list[SampleKey]], workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Batches in the given order, made by that many loader processes (0: in this one)."""
    return iter(
        DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # PyTorch draws a base seed here; nothing of ours depends on it
        )
    )


def in_order(indices: Iterable[int], batch: int) -> Iterator[list[SampleKey]]:
    """Evaluation batches of samples in the given order, the last one smaller; the epoch is 0."""
    held: list[SampleKey] = []
    for index in indices:
        held.append((0, index))
        if len(held) == batch:
            yield held
            held = []
    if held:
        yield held
