"""From samples to batches: reading, transforming, standing in for broken files, and loader processes.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mim.data.base import Need, Source, Stored, sides
from mim.data.images import BrokenImage
from mim.data.sampler import SampleKey
from mim.data.transforms import Crop, DeviceCropFlip, RandomCropFlip, to_tensor
from mim.ops.seeding import derive_seed
from mim.structures import Batch

ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One transformed image (C, H, W) with its label, its index, and the files that it stands in for.

    crops: where the image is whole, what the device is to cut out of it, a row of the batch each.
    """

    image_CHW: Tensor
    label: int
    index: int
    broken: tuple[tuple[str, str], ...]
    crops: tuple[Crop, ...] = ()


class ImageDataset(Dataset[Sample]):
    """A source under a transform. A sample's augmentation depends on (seed, epoch, index, repeat) alone.

    repeats: crops of each image, for one reading. A broken file is replaced by the next one that can be read, and named
    in the sample. Raises RuntimeError, with the names, where 20 in a row cannot be read.
    """

    def __init__(
        self,
        source: Source,
        transform: RandomCropFlip | Callable[[Stored, int], Tensor],
        seed: int,
        repeats: int = 1,
    ):
        self.source, self.transform, self.seed, self.repeats = source, transform, seed, repeats

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The first crop of an image."""
        return self._samples(key, self._seeds(*key, 1))[0]

    def __getitems__(self, keys: list[SampleKey]) -> list[Sample]:
        """All crops of some images, those of one image next to each other; PyTorch's loader calls it for a batch."""
        seeds = [self._seeds(*key, self.repeats) for key in keys]  # at once: between decodings it takes 5 times as long
        samples = [sample for key, own in zip(keys, seeds, strict=True) for sample in self._samples(key, own)]
        if any(sample.crops for sample in samples):
            self._check_sizes((sample.index, sides(sample.image_CHW)) for sample in samples)
        return samples

    def model_images(self, batch: Batch) -> Tensor:
        """The images of a batch, (B, C, H, W) in their stored type, cropped where they are if that is still to do."""
        if batch.crops_B5 is None:
            return batch.images_BCHW
        assert isinstance(self.transform, DeviceCropFlip)
        return self.transform.apply(batch.images_BCHW, batch.crops_B5)

    def compare_sizes(self, most: int = 8) -> None:
        """Raises ValueError where images are to travel whole and some of them, evenly spread, are not of one size."""
        if isinstance(self.transform, DeviceCropFlip):
            spread = dict.fromkeys(place * len(self) // most for place in range(most)) if len(self) else ()
            self._check_sizes((index, size) for index in spread if (size := self._size(index)) is not None)

    def _seeds(self, epoch: int, index: int, repeats: int) -> list[int]:
        """Of each crop of an image; the first is that of a run without repeats."""
        places = [(epoch, index), *((epoch, index, repeat) for repeat in range(1, repeats))]
        return [derive_seed(self.seed, "augment", *place) for place in places]

    def _samples(self, key: SampleKey, seeds: list[int]) -> list[Sample]:
        epoch, index = key
        broken: list[tuple[str, str]] = []
        for attempt in range(min(ATTEMPTS, len(self.source))):
            chosen = (index + attempt) % len(self.source)
            try:
                shown = self._shown(chosen, self._seeds(epoch, chosen, len(seeds)) if attempt else seeds)
            except BrokenImage as error:
                broken.append((self.source.describe(chosen), str(error)))
                continue
            label = -1 if self.source.labels is None else int(self.source.labels[chosen])
            return [
                Sample(image_CHW, label, chosen, () if repeat else tuple(broken), crops)
                for repeat, (image_CHW, crops) in enumerate(shown)
            ]
        names = "\n".join(f"  {name}: {reason}" for name, reason in broken[:5])
        raise RuntimeError(f"{len(broken)} images in a row cannot be read; the first of them:\n{names}")

    def _shown(self, index: int, seeds: list[int]) -> list[tuple[Tensor, tuple[Crop, ...]]]:
        """One reading of an image, under the transform with each seed; or whole, once, with the crops of all seeds."""
        transform = self.transform
        if not isinstance(transform, RandomCropFlip):
            stored = self.source.read(index)
            return [(transform(stored, seed), ()) for seed in seeds]
        if isinstance(transform, DeviceCropFlip):
            stored, size = self.source.read_reduced(index, _whole)
            return [(to_tensor(stored), tuple(transform.draw_crop(*size, seed) for seed in seeds))]
        drawn: list[Crop] = []

        def enough(height: int, width: int) -> Need:
            drawn[:] = [transform.draw_crop(height, width, seed) for seed in seeds]
            needs = [transform.enough(crop) for crop in drawn]
            return Need(min(need.by for need in needs), max(need.rows for need in needs))

        stored, size = self.source.read_reduced(index, enough)
        crops = drawn or [transform.draw_crop(*size, seed) for seed in seeds]
        return [
            (transform.finish(transform.cut(stored, crop, size), seed), ())
            for crop, seed in zip(crops, seeds, strict=True)
        ]

    def _size(self, index: int) -> tuple[int, int] | None:
        """Height and width of a stored image; None of one that cannot be read."""
        try:
            return self.source.read_reduced(index, _whole)[1]
        except BrokenImage:
            return None

    def _check_sizes(self, found: Iterable[tuple[int, tuple[int, int]]]) -> None:
        """Raises ValueError, naming two images, where those of these indices and sizes are not of one size."""
        first: dict[tuple[int, int], int] = {}
        for index, size in found:
            first.setdefault(size, index)
        if len(first) > 1:
            one, other = [
                f"{self.source.describe(index)} of {height} x {width} pixels"
                for (height, width), index in list(first.items())[:2]
            ]
            raise ValueError(
                f"AUGMENT.on_device needs images of one size, and there are {one} and {other} (height x width): "
                "pack them with tools/pack.py --size H W and set DATA.name packed, or set AUGMENT.on_device false"
            )

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
    rows = [sample for sample in samples for _ in sample.crops or [None]]
    crops = [astuple(crop) for sample in samples for crop in sample.crops]
    return Batch(
        default_collate([sample.image_CHW for sample in samples]),  # a loader process stacks into shared memory
        torch.tensor([row.label for row in rows]),
        tuple(row.index for row in rows),
        tuple(file for sample in samples for file in sample.broken),
        torch.tensor(crops, dtype=torch.int32) if crops else None,
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


def _whole(height: int, width: int) -> Need:
    """An image of any size is read as it is."""
    return Need(1.0, height)


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
