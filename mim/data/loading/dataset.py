"""ImageDataset: samples of a source: read, cropped, and replaced where a file is broken.

Shapes: B batch, C channels, H W pixels, K classes or columns of numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mim.data.batch import Batch
from mim.data.decoding.images import BrokenImage
from mim.data.loading.sampler import SampleKey
from mim.data.sources.base import Need, Source, Stored, size_of
from mim.data.sources.retry import RetryingSource
from mim.data.transforms import CentreCrop, Crop, DeviceCropFlip, RandomCropFlip, to_tensor, to_unit
from mim.errors import DataLost
from mim.ops.seeding import derive_seed

ATTEMPTS = 20  # images that are tried for one sample: its own, and those that replace it
PROBED = 20  # images that are read to find the usual stored type


@dataclass(frozen=True, slots=True)
class Sample:
    """One transformed image."""

    image_CHW: Tensor  # in its stored type
    labels: tuple[int | Tensor, ...]  # of each row of the batch: a class, -1 for none; (K,) float32; or (H, W) int64
    index: int  # position in the data set of the image that was read
    broken: tuple[tuple[str, str], ...]  # files that this sample replaces, each with the reason
    crops: tuple[Crop, ...] = ()  # to cut on the device, one a row of the batch; empty where the image is cropped


class ImageDataset(Dataset[Sample]):
    """A source under a transform. The augmentation of a sample depends on (seed, epoch, index, repeat) alone.

    A broken file, also one with NaN, is named in its sample, and another image replaces it, which (seed, epoch, index)
    choose.

    Args:
        source: the images.
        transform: makes an image for the batch from a stored image and a seed.
        seed: of all augmentation.
        repeats: crops of each image, all from one reading.
        masks: read the masks of images that have them; without, such images have no labels.
        balance: samplers draw each class equally often, with repetitions.

    Raises ValueError where the transform cannot move masks as it moves images, or the balanced labels are no classes;
    DataLost where 20 images in a row cannot be read, or the storage stays away.
    """

    def __init__(
        self,
        source: Source,
        transform: RandomCropFlip | Callable[[Stored, int], Tensor],
        seed: int,
        repeats: int = 1,
        *,
        masks: bool = False,
        balance: bool = False,
    ):
        self.source, self.transform, self.seed, self.repeats = source, transform, seed, repeats
        self._reader = RetryingSource(source)
        self._kind = source.label_kind
        self.reads_masks = masks and self._kind == "mask"
        if self.reads_masks and not isinstance(transform, RandomCropFlip | CentreCrop):
            raise ValueError(f"masks are cut as RandomCropFlip and CentreCrop cut images, not by {transform}")
        if self.reads_masks and getattr(transform, "moves_pixels", False):
            raise ValueError("AUGMENT.randaugment turns and shears images, and masks stay: set AUGMENT.randaugment ''")
        if balance and self._kind != "class":
            raise ValueError(f"LABELS.balance is for labels of kind class, and these are of kind {self._kind}")
        self.balanced_labels = source.labels if balance else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The first crop of an image."""
        return self._samples(key, self._seeds(*key, 1))[0]

    def batch(self, keys: list[SampleKey]) -> Batch:
        """All crops of some images, those of one image in neighbouring rows."""
        self.source.prefetch([index for _, index in keys])
        # all seeds first: between two decodings, drawing them would take 5 times as long
        seeds = [self._seeds(*key, self.repeats) for key in keys]
        by_image = [self._samples(key, own_seeds) for key, own_seeds in zip(keys, seeds, strict=True)]
        if len({samples[0].image_CHW.dtype for samples in by_image}) > 1 and (dtype := self._usual_dtype()) is not None:
            by_image = [  # damage can turn a picture into one of another type
                samples if samples[0].image_CHW.dtype == dtype else self._samples(key, own_seeds, dtype)
                for key, own_seeds, samples in zip(keys, seeds, by_image, strict=True)
            ]
        rows = [sample for samples in by_image for sample in samples]
        if any(sample.crops for sample in rows):
            self._check_sizes((sample.index, size_of(sample.image_CHW)) for sample in rows)
        return collate(rows)

    def readable(self, keys: list[SampleKey], mixed: bool = False) -> Batch:
        """Those of some images that can be read, once each; the others are named, and none replaces another.

        mixed: where images are of several stored types, all become float32, scaled to [0, 1].
        """
        samples: list[Sample] = []
        broken: list[tuple[str, str]] = []
        dtype: torch.dtype | None = None
        self.source.prefetch([index for _, index in keys])
        for epoch, index in keys:
            try:
                samples.append(self._sample(index, self._seeds(epoch, index, 1))[0])
            except BrokenImage as error:
                broken.append((self.source.describe(index), str(error)))
        if len({sample.image_CHW.dtype for sample in samples}) > 1:
            if mixed:
                samples = [replace(sample, image_CHW=to_unit(sample.image_CHW)) for sample in samples]
            elif (dtype := self._usual_dtype()) is not None:
                broken += [
                    (self.source.describe(sample.index), _other_type(sample.image_CHW.dtype, dtype))
                    for sample in samples
                    if sample.image_CHW.dtype != dtype
                ]
                samples = [sample for sample in samples if sample.image_CHW.dtype == dtype]
        batch = collate(samples) if samples else Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), ())
        return replace(batch, broken=tuple(broken))

    def check_sizes(self, images: int = 8) -> None:
        """Raises ValueError where AUGMENT.on_device needs images of one size and some, evenly spread, are not."""
        if isinstance(self.transform, DeviceCropFlip):
            self._check_sizes((index, size_of(stored)) for index, stored in self._spread(images))

    def stored_type(self) -> torch.dtype | None:
        """The number type of the first image; None where it cannot be read."""
        stored = self.first()
        return stored.dtype if isinstance(stored, Tensor) else None if stored is None else torch.uint8

    def first(self) -> Stored | None:
        """The first image as it is stored; None where it cannot be read."""
        with suppress(BrokenImage, OSError):
            return self._reader.scaled(self.source.read(0))
        return None

    def _seeds(self, epoch: int, index: int, repeats: int) -> list[int]:
        """The seed of each crop of an image; the first is that of a run without repeats."""
        keys = [(epoch, index), *((epoch, index, repeat) for repeat in range(1, repeats))]
        return [derive_seed(self.seed, "augment", *key) for key in keys]

    def _samples(self, key: SampleKey, seeds: list[int], dtype: torch.dtype | None = None) -> list[Sample]:
        """The crops of one image. dtype: the type in which it must be stored, None for any."""
        broken: list[tuple[str, str]] = []
        for index in self._candidates(*key):
            try:
                first, *others = self._sample(index, self._seeds(key[0], index, len(seeds)) if broken else seeds)
                if dtype is not None and first.image_CHW.dtype != dtype:
                    raise BrokenImage(_other_type(first.image_CHW.dtype, dtype))
            except BrokenImage as error:
                broken.append((self.source.describe(index), str(error)))
                continue
            return [replace(first, broken=tuple(broken)), *others]
        names = "; ".join(f"{name} ({reason})" for name, reason in broken[:3])
        raise DataLost(
            f"{len(broken)} images in a row cannot be read, one and those drawn to replace it, such as {names}: check "
            "that DATA.path names images, and leave out those that cannot be read"
        )

    def _sample(self, index: int, seeds: list[int]) -> list[Sample]:
        """The crops of this image. Raises BrokenImage where it cannot be read."""
        return [Sample(image_CHW, labels, index, (), crops) for image_CHW, labels, crops in self._crops(index, seeds)]

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The image itself, then images to replace it, each once: all of the data set are equally likely."""
        tried: set[int] = set()
        attempt = 0
        while len(tried) < min(ATTEMPTS, len(self.source)):
            drawn = derive_seed(self.seed, "stand-in", epoch, index, attempt) % len(self.source) if attempt else index
            attempt += 1
            if drawn not in tried:
                tried.add(drawn)
                yield drawn

    def _crops(self, index: int, seeds: list[int]) -> list[tuple[Tensor, tuple[int | Tensor, ...], tuple[Crop, ...]]]:
        """One reading of an image, transformed with each seed; or uncropped, once, with the crops of all seeds."""
        transform = self.transform
        if not isinstance(transform, RandomCropFlip):
            stored = self._reader.read(index)
            labels = self._labels(index, size_of(stored), [None] * len(seeds), seeds)
            return [(transform(stored, seed), (label,), ()) for seed, label in zip(seeds, labels, strict=True)]
        if isinstance(transform, DeviceCropFlip):
            stored, size = self._reader.read_reduced(index, _uncropped)
            on_device = tuple(transform.draw_crop(*size, seed) for seed in seeds)
            return [(to_tensor(stored), self._labels(index, size, on_device, seeds), on_device)]
        crops: list[Crop] = []

        def need_of(height: int, width: int) -> Need:
            crops[:] = [transform.draw_crop(height, width, seed) for seed in seeds]
            needs = [transform.need_of(crop, (height, width)) for crop in crops]
            return Need(min(need.reduction for need in needs), max(need.rows for need in needs))

        stored, size = self._reader.read_reduced(index, need_of)
        crops = crops or [transform.draw_crop(*size, seed) for seed in seeds]
        labels = self._labels(index, size, crops, seeds)
        return [
            (transform.finish(transform.cut(stored, crop, size), seed), (label,), ())
            for crop, seed, label in zip(crops, seeds, labels, strict=True)
        ]

    def _labels(
        self, index: int, size: tuple[int, int] | None, crops: Sequence[Crop | None], seeds: Sequence[int]
    ) -> tuple[int | Tensor, ...]:
        """The label of each crop of an image of that stored size. Raises BrokenImage where its mask cannot be used.

        size: None where its mask was compared with the image before.
        """
        if self.reads_masks:
            mask_HW = self._reader.mask(index)
            if size is not None and mask_HW.shape != size:
                raise BrokenImage(mask_of_another_size(mask_HW, size))
            whole_HW = torch.from_numpy(mask_HW)
            return tuple(self._cut(whole_HW, crop, seed) for crop, seed in zip(crops, seeds, strict=True))
        labels = self.source.labels
        if labels is None:
            return (-1,) * len(crops)
        label = int(labels[index]) if self._kind == "class" else torch.tensor(labels[index])
        return (label,) * len(crops)

    def _cut(self, mask_HW: Tensor, crop: Crop | None, seed: int) -> Tensor:
        """The pixels of a mask that lie nearest to those of a crop of its image."""
        if isinstance(self.transform, RandomCropFlip):
            assert crop is not None
            return self.transform.cut_mask(mask_HW, crop, seed)
        assert isinstance(self.transform, CentreCrop)
        row_H, column_W = self.transform.places((mask_HW.shape[0], mask_HW.shape[1]))
        return mask_HW[row_H][:, column_W]

    def _usual_dtype(self) -> torch.dtype | None:
        """The type of at least 4 of 5 images, as some of them show, evenly spread; None where there is no such type."""
        counts = Counter(
            stored.dtype if isinstance(stored, Tensor) else torch.uint8 for _, stored in self._spread(PROBED)
        )
        most = counts.most_common(1)
        return most[0][0] if most and most[0][1] >= 0.8 * counts.total() else None

    def _spread(self, images: int) -> Iterator[tuple[int, Stored]]:
        """Some images, evenly spread, with their positions; those that can be read."""
        for index in dict.fromkeys(number * len(self) // images for number in range(images)) if len(self) else ():
            with suppress(BrokenImage):
                yield index, self._reader.scaled(self.source.read(index))

    def _check_sizes(self, sizes: Iterable[tuple[int, tuple[int, int]]]) -> None:
        """Raises ValueError, naming two images, where images (index, size) are not of one size."""
        index_of: dict[tuple[int, int], int] = {}
        for index, size in sizes:
            index_of.setdefault(size, index)
        if len(index_of) > 1:
            one, other, *_ = (f"{self.source.describe(row)} of {h} x {w} pixels" for (h, w), row in index_of.items())
            raise ValueError(
                f"AUGMENT.on_device needs images of one size, and there are {one} and {other} (height x width): "
                "pack them with tools/pack.py --size H W and set DATA.name packed, or set AUGMENT.on_device false"
            )


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples. Raises ValueError where images are stored in different types."""
    types = {sample.image_CHW.dtype for sample in samples}
    if len(types) > 1:
        raise ValueError(f"images of one batch are stored as {' and '.join(sorted(map(str, types)))}: use one type")
    rows = [sample for sample in samples for _ in sample.labels]
    labels = [label for sample in samples for label in sample.labels]
    crops = [astuple(crop) for sample in samples for crop in sample.crops]
    return Batch(
        default_collate([sample.image_CHW for sample in samples]),  # in a worker: into shared memory
        default_collate(labels),
        tuple(row.index for row in rows),
        tuple(file for sample in samples for file in sample.broken),
        torch.tensor(crops, dtype=torch.int32) if crops else None,
    )


def mask_of_another_size(mask_HW: np.ndarray, size: tuple[int, int]) -> str:
    """Why a mask does not fit an image of that height and width."""
    own = " x ".join(map(str, mask_HW.shape))
    return f"its mask has {own} pixels and the image {size[0]} x {size[1]} (height x width)"


def _other_type(dtype: torch.dtype, usual: torch.dtype) -> str:
    return f"it is stored as {dtype}, and the others as {usual}"


def _uncropped(height: int, width: int) -> Need:
    return Need(1.0, height)
