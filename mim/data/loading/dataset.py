"""From samples to a batch: reading, transforming, and standing in for broken files.

Shapes: B batch, C channels, H W pixels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mim.data.batch import Batch, Note
from mim.data.decoding.images import BrokenImage
from mim.data.loading.retry import patient
from mim.data.loading.sampler import SampleKey
from mim.data.sources.base import Need, Source, Stored, quiet_decoders, sides
from mim.data.transforms import Crop, DeviceCropFlip, RandomCropFlip, to_tensor
from mim.errors import DataLost
from mim.ops.seeding import derive_seed

ATTEMPTS = 20
LOOKED_AT = 20  # images that tell what type images are stored in, where it is not clear


@dataclass(frozen=True, slots=True)
class Sample:
    """One transformed image (C, H, W) with its label, its index, and the files that it stands in for.

    crops: where the image is whole, what the device is to cut out of it, a row of the batch each; notes: of what
    happened while it was read.
    """

    image_CHW: Tensor
    label: int
    index: int
    broken: tuple[tuple[str, str], ...]
    crops: tuple[Crop, ...] = ()
    notes: tuple[Note, ...] = ()


class ImageDataset(Dataset[Sample]):
    """A source under a transform. A sample's augmentation depends on (seed, epoch, index, repeat) alone.

    repeats: crops of each image, for one reading. A broken file is named in the sample and replaced by another image,
    which (seed, epoch, index) choose. Raises DataLost where 20 in a row cannot be read, or the place where images lie
    stays away.
    """

    def __init__(
        self,
        source: Source,
        transform: RandomCropFlip | Callable[[Stored, int], Tensor],
        seed: int,
        repeats: int = 1,
    ):
        self.source, self.transform, self.seed, self.repeats = source, transform, seed, repeats

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a loader process that is no copy of this one."""
        self.__dict__.update(state)
        quiet_decoders()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """The first crop of an image."""
        return self._samples(key, self._seeds(*key, 1))[0]

    def __getitems__(self, keys: list[SampleKey]) -> list[Sample]:
        """All crops of some images, those of one image next to each other: the rows of a batch."""
        seeds = [self._seeds(*key, self.repeats) for key in keys]  # at once: between decodings it takes 5 times as long
        made = [self._samples(key, own) for key, own in zip(keys, seeds, strict=True)]
        if len({samples[0].image_CHW.dtype for samples in made}) > 1 and (usual := self._usual_type()) is not None:
            made = [  # damage can turn a picture into one of another type
                samples if samples[0].image_CHW.dtype == usual else self._samples(key, own, usual)
                for key, own, samples in zip(keys, seeds, made, strict=True)
            ]
        samples = [sample for several in made for sample in several]
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

    def _samples(self, key: SampleKey, seeds: list[int], usual: torch.dtype | None = None) -> list[Sample]:
        """usual: the type that images must be stored in, None for any."""
        epoch, index = key
        broken: list[tuple[str, str]] = []
        notes: list[Note] = []
        for chosen in self._candidates(epoch, index):
            own = self._seeds(epoch, chosen, len(seeds)) if broken else seeds
            try:
                shown = patient(self.source, lambda chosen=chosen, own=own: self._shown(chosen, own), notes)  # type: ignore[misc]
                if usual is not None and (found := shown[0][0].dtype) != usual:
                    raise BrokenImage(f"it is stored as {found}, and the others as {usual}")
            except BrokenImage as error:
                broken.append((self.source.describe(chosen), str(error)))
                continue
            label = -1 if self.source.labels is None else int(self.source.labels[chosen])
            return [
                Sample(image_CHW, label, chosen, *(((), crops) if repeat else (tuple(broken), crops, tuple(notes))))
                for repeat, (image_CHW, crops) in enumerate(shown)
            ]
        named = "; ".join(f"{name} ({reason})" for name, reason in broken[:3])
        raise DataLost(
            f"{len(broken)} images in a row cannot be read, one and those drawn to stand in for it, such as {named}: "
            "see that DATA.path names images, and leave out those that cannot be read"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The image itself, and those that stand in for it, each once: any of the data set is as likely."""
        tried: set[int] = set()
        attempt = 0
        while len(tried) < min(ATTEMPTS, len(self.source)):
            place = (epoch, index, attempt)
            chosen = derive_seed(self.seed, "stand-in", *place) % len(self.source) if attempt else index
            attempt += 1
            if chosen not in tried:
                tried.add(chosen)
                yield chosen

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

    def _usual_type(self) -> torch.dtype | None:
        """The type that 4 of 5 images or more are stored in, as far as some of them tell, evenly spread."""
        spread = dict.fromkeys(place * len(self) // LOOKED_AT for place in range(LOOKED_AT))
        types: Counter[torch.dtype] = Counter()
        for index in spread:
            with suppress(BrokenImage):
                stored = self.source.read(index)
                types[stored.dtype if isinstance(stored, Tensor) else torch.uint8] += 1
        most = types.most_common(1)
        return most[0][0] if most and most[0][1] >= 0.8 * types.total() else None

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
        tuple(note for sample in samples for note in sample.notes),
    )


def _whole(height: int, width: int) -> Need:
    """An image of any size is read as it is."""
    return Need(1.0, height)
