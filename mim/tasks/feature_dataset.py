"""FeatureDataset: features of a frozen encoder in place of images that no augmentation changes, computed once.

Shapes: B batch, C channels, H W pixels, V numbers of one image.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.transforms import Crop
from mim.engine.distributed.world import World
from mim.errors import DataLost
from mim.evaluation.reading import Reader
from mim.io.files import write_atomically
from mim.structures import Features
from mim.tasks.feature_files import FeatureFiles, FeatureLayout, check_room, rank_file

LOG = logging.getLogger("mim")

FORMAT = 1  # of the files; another one where an encoder no longer gives what it gave
FOLDER = "features"  # in that of the run
Compute = Callable[[Tensor], Features]  # from stored images (B, C, H, W) on the host


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Where the features of a probe are stored, and what decides them beside weights and images."""

    folder: Path | None  # None: in that of the run
    settings: str


class FeatureDataset(ImageDataset):
    """An ImageDataset that gives features, as rows of numbers, in place of the pixels that they were made of.

    images has a transform that always does the same. What is broken there is broken here.
    """

    def __init__(self, images: ImageDataset, files: FeatureFiles):
        super().__init__(
            images.source,
            images.transform,
            images.seed,
            images.repeats,
            masks=images.reads_masks,
            balance=images.balanced_labels is not None,
        )
        self.files, self._maps = files, list[Tensor]()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": []}  # a dataloader worker maps the files itself

    def unpack(self, values_BV: Tensor) -> Features:
        """The features of the rows of a batch."""
        return self.files.layout.unpack(values_BV)

    def _crops(self, index: int, seeds: list[int]) -> list[tuple[Tensor, tuple[int | Tensor, ...], tuple[Crop, ...]]]:
        if index in self.files.broken:
            raise BrokenImage(self.files.broken[index])
        self._maps = self._maps or self.files.mapped()
        values_V = self._maps[index % self.files.ranks][index // self.files.ranks]
        return [(values_V, (label,), ()) for label in self._labels(index, None, [None] * len(seeds), seeds)]


def store_features(
    images: ImageDataset, compute: Compute, reader: Reader, folder: Path, fingerprint: str, world: World
) -> FeatureDataset:
    """The data set with its features, which are found in `folder`, or else computed there, by all ranks together.

    Args:
        images: under a transform that always does the same.
        compute: features of stored images on the host.
        reader: whose batch size and workers are used.
        fingerprint: what features that are found must have been made of: `fingerprint_of`.

    Raises DataLost where no image can be read, ValueError where the disk has no room for them.
    """
    folder = folder / fingerprint
    files = world.from_main(lambda: FeatureFiles.read(folder))
    if files is not None:
        LOG.info("features of %s images found in %s", f"{len(images):,}", folder)
        return FeatureDataset(images, files)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(images, compute, reader, range(world.rank, len(images), world.size), folder)
    file = rank_file(folder, world.rank, world.size)
    write_atomically(file, part.write)
    layouts = [layout for layout in world.gather_objects(part.layout) if layout is not None]
    broken = {index: reason for each in world.gather_objects(part.broken) for index, reason in each.items()}
    if not layouts:
        name, reason = images.source.describe(0), broken[0]
        raise DataLost(f"none of the images whose features are to be stored can be read, such as {name} ({reason})")
    if part.layout is None:  # no image of this rank can be read
        part.layout = layouts[0]
        write_atomically(file, part.write_zeros)
    files = FeatureFiles(folder, layouts[0], world.size, len(images), broken)
    if world.main:
        files.write_index()
    world.barrier()
    size, seconds = len(images) * files.layout.row_bytes / 1e6, time.monotonic() - began
    LOG.info("features of %s images computed once, in %.0f s: %.0f MB in %s", f"{len(images):,}", seconds, size, folder)
    return FeatureDataset(images, files)


class _Part:
    """The rows of one rank."""

    def __init__(self, images: ImageDataset, compute: Compute, reader: Reader, indices: range, folder: Path):
        self.images, self.compute, self.reader, self.indices, self.folder = images, compute, reader, indices, folder
        self.layout: FeatureLayout | None = None
        self.broken: dict[int, str] = {}

    def write(self, file: BinaryIO) -> None:
        """Writes a row for each image, of zeros for broken ones."""
        written = 0  # rows
        for rows, values_BV in self._computed():
            for row, values_V in zip(rows, values_BV.view(torch.uint8).numpy(), strict=True):
                row_of_rank = row // self.indices.step
                self.write_zeros(file, row_of_rank - written)
                file.write(memoryview(values_V))
                written = row_of_rank + 1
        self.write_zeros(file, len(self.indices) - written)

    def _computed(self) -> Iterator[tuple[list[int], Tensor]]:
        missing, reader = set(self.indices), Reader(self.reader.batch_size, self.reader.workers)
        samples = range(len(self.images))
        with closing(reader.read(self.images, samples, self.indices.start, self.indices.step)) as parts:
            for part in parts:
                features = self.compute(part.batch.images_BCHW)
                if self.layout is None:
                    self.layout = FeatureLayout.of(features)
                    check_room(self.folder, len(self.images) * self.layout.row_bytes)
                missing -= set(part.rows)
                yield part.rows, self.layout.pack(features).cpu().contiguous()
        reasons = reader.left_out()
        self.broken = {index: reasons.get(self.images.source.describe(index), "") for index in sorted(missing)}

    def write_zeros(self, file: BinaryIO, rows: int | None = None) -> None:
        """Writes so many rows of zeros; by default one for each image of the rank."""
        if self.layout is not None:
            file.write(bytes((len(self.indices) if rows is None else rows) * self.layout.row_bytes))


def fingerprint_of(encoder: nn.Module, images: ImageDataset, more: tuple[object, ...]) -> str:
    """A hash of the encoder's weights, of the images (names, sizes and times of their files), and of `more`."""
    digest = blake2b(digest_size=12)
    transform = type(images.transform).__name__, sorted(vars(images.transform).items())
    digest.update(repr((FORMAT, *transform, *more)).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    for index in range(len(images)):
        name = images.source.describe(index)
        digest.update(name.encode(errors="surrogateescape"))
        try:
            stat = Path(name).stat()
        except (OSError, ValueError):
            continue  # a name of another kind, such as a row of a table
        digest.update(f" {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
