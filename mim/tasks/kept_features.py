"""Kept features: what a frozen encoder makes of images that no augmentation changes, computed once and read from files.

FOLDER/<fingerprint>/rank0-of-1.bin    a row of numbers for each image of that rank, memory-mapped when read
FOLDER/<fingerprint>/features.json     what the rows mean; written last

Shapes: N images, B batch, V numbers of one image.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor, nn

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.transforms import Crop
from mim.engine.distributed.world import World
from mim.errors import DataLost
from mim.evaluation.reading import Reader
from mim.io.files import write_atomically, write_json
from mim.structures import Features

LOG = logging.getLogger("mim")

FORMAT = 1  # of the files; another one where an encoder no longer gives what it gave
INDEX = "features.json"
FOLDER = "features"  # in that of the run
Compute = Callable[[Tensor], Features]  # from stored images (B, C, H, W) on the host


@dataclass(frozen=True, slots=True)
class Keep:
    """Where the features of a probe are kept, and what decides them beside weights and images."""

    folder: Path | None  # None: in that of the run
    settings: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How the features of an image lie in a row."""

    grid: tuple[int, int]  # tokens of the full grid
    tokens: tuple[int, int]  # number and width
    prefix: tuple[int, int] | None  # number and width of class token and registers
    stages: tuple[tuple[int, int, int], ...]
    dtype: str  # of torch

    @classmethod
    def of(cls, features: Features) -> Self:
        """That of features of the full grid."""
        prefix = None if features.prefix_BKD is None else _shape(features.prefix_BKD)
        stages = tuple(map(_shape, features.stages_BDhw))
        dtype = str(_parts(features)[0].dtype).removeprefix("torch.")
        return cls(features.grid, _shape(features.tokens_BND), prefix, stages, dtype)

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        """From what JSON keeps of it."""
        prefix, stages = raw["prefix"], tuple(map(tuple, raw["stages"]))
        return cls(tuple(raw["grid"]), tuple(raw["tokens"]), prefix and tuple(prefix), stages, raw["dtype"])

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def values(self) -> int:
        """V."""
        return sum(map(prod, self._shapes()))

    @property
    def row_bytes(self) -> int:
        return self.values * self.torch_dtype.itemsize

    def pack(self, features: Features) -> Tensor:
        """Rows (B, V), in the type of the tokens."""
        return torch.cat([part.flatten(1).to(self.torch_dtype) for part in _parts(features)], dim=1)

    def unpack(self, values_BV: Tensor) -> Features:
        """The features of rows."""
        shapes = self._shapes()
        rows = values_BV.split(list(map(prod, shapes)), dim=1)
        tokens, *others = (row.unflatten(1, shape) for row, shape in zip(rows, shapes, strict=True))
        prefix = others.pop(0) if self.prefix is not None else None
        return Features(tokens, self.grid, prefix_BKD=prefix, stages_BDhw=tuple(others))

    def _shapes(self) -> list[tuple[int, ...]]:
        return [self.tokens, *([] if self.prefix is None else [self.prefix]), *self.stages]


def _parts(features: Features) -> list[Tensor]:
    prefix = [] if features.prefix_BKD is None else [features.prefix_BKD]
    return [features.tokens_BND, *prefix, *features.stages_BDhw]


def _shape(part: Tensor) -> Any:
    return tuple(part.shape[1:])


@dataclass(frozen=True, slots=True)
class KeptFeatures:
    """The rows of the images of one data set."""

    folder: Path
    layout: Layout
    ranks: int  # that computed them: rank r has the images r, r + ranks, ...
    images: int
    broken: dict[int, str]  # why an image has no features, by index

    @classmethod
    def found(cls, folder: Path) -> Self | None:
        """Those of a folder; None where they are not complete."""
        try:
            raw = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            broken = {int(index): reason for index, reason in raw["broken"].items()}
            kept = cls(folder, Layout.read(raw["layout"]), raw["ranks"], raw["images"], broken)
            sizes = [kept.file(rank).stat().st_size for rank in range(kept.ranks) if kept.rows(rank)]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        complete = [kept.rows(rank) * kept.layout.row_bytes for rank in range(kept.ranks) if kept.rows(rank)]
        return kept if sizes == complete else None

    def file(self, rank: int) -> Path:
        """The rows of one rank."""
        return _file(self.folder, rank, self.ranks)

    def rows(self, rank: int) -> int:
        """How many they are."""
        return len(range(rank, self.images, self.ranks))

    def mapped(self) -> list[Tensor]:
        """The rows of each rank, mapped into memory."""
        layout, maps = self.layout, []
        for rank in range(self.ranks):
            size = self.rows(rank) * layout.values
            values = torch.empty(0, dtype=layout.torch_dtype)
            if size:
                values = torch.from_file(str(self.file(rank)), shared=False, size=size, dtype=layout.torch_dtype)
            maps.append(values.view(-1, layout.values))
        return maps

    def write_index(self) -> None:
        """Says that all rows are there."""
        numbers = {"ranks": self.ranks, "images": self.images, "broken": self.broken}
        write_json(self.folder / INDEX, {"layout": asdict(self.layout), **numbers})


def _file(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"rank{rank}-of-{ranks}.bin"


class FeatureDataset(ImageDataset):
    """An ImageDataset that gives kept features, as rows of numbers, in place of the pixels that they were made of.

    images has a transform that always does the same. What is broken there is broken here.
    """

    def __init__(self, images: ImageDataset, kept: KeptFeatures):
        super().__init__(
            images.source,
            images.transform,
            images.seed,
            images.repeats,
            masks=images.reads_masks,
            balance=images.balanced_labels is not None,
        )
        self.kept, self._maps = kept, list[Tensor]()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": []}  # a dataloader worker maps the files itself

    def unpack(self, values_BV: Tensor) -> Features:
        """The features of the rows of a batch."""
        return self.kept.layout.unpack(values_BV)

    def _crops(self, index: int, seeds: list[int]) -> list[tuple[Tensor, tuple[int | Tensor, ...], tuple[Crop, ...]]]:
        if index in self.kept.broken:
            raise BrokenImage(self.kept.broken[index])
        self._maps = self._maps or self.kept.mapped()
        values_V = self._maps[index % self.kept.ranks][index // self.kept.ranks]
        return [(values_V, (label,), ()) for label in self._labels(index, None, [None] * len(seeds), seeds)]


def keep_features(
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
    kept = world.from_main(lambda: KeptFeatures.found(folder))
    if kept is not None:
        LOG.info("features of %s images found in %s", f"{len(images):,}", folder)
        return FeatureDataset(images, kept)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(images, compute, reader, range(world.rank, len(images), world.size), folder)
    file = _file(folder, world.rank, world.size)
    write_atomically(file, part.write)
    layouts = [layout for layout in world.gather_objects(part.layout) if layout is not None]
    broken = {index: reason for each in world.gather_objects(part.broken) for index, reason in each.items()}
    if not layouts:
        name, reason = images.source.describe(0), broken[0]
        raise DataLost(f"none of the images whose features are to be kept can be read, such as {name} ({reason})")
    if part.layout is None:  # no image of this rank can be read
        part.layout = layouts[0]
        write_atomically(file, part.write_zeros)
    kept = KeptFeatures(folder, layouts[0], world.size, len(images), broken)
    if world.main:
        kept.write_index()
    world.barrier()
    size, seconds = len(images) * kept.layout.row_bytes / 1e6, time.monotonic() - began
    LOG.info("features of %s images computed once, in %.0f s: %.0f MB in %s", f"{len(images):,}", seconds, size, folder)
    return FeatureDataset(images, kept)


class _Part:
    """The rows of one rank."""

    def __init__(self, images: ImageDataset, compute: Compute, reader: Reader, indices: range, folder: Path):
        self.images, self.compute, self.reader, self.indices, self.folder = images, compute, reader, indices, folder
        self.layout: Layout | None = None
        self.broken: dict[int, str] = {}

    def write(self, file: BinaryIO) -> None:
        """Writes a row for each image, of zeros for broken ones."""
        place = 0  # rows that are written
        for rows, values_BV in self._computed():
            for row, values_V in zip(rows, values_BV.view(torch.uint8).numpy(), strict=True):
                place = self.write_zeros(file, place, row // self.indices.step)
                file.write(memoryview(values_V))
                place += 1
        self.write_zeros(file, place)

    def _computed(self) -> Iterator[tuple[list[int], Tensor]]:
        missing, reader = set(self.indices), Reader(self.reader.batch_size, self.reader.workers)
        samples = range(len(self.images))
        with closing(reader.read(self.images, samples, self.indices.start, self.indices.step)) as parts:
            for part in parts:
                features = self.compute(part.batch.images_BCHW)
                if self.layout is None:
                    self.layout = Layout.of(features)
                    check_room(self.folder, len(self.images) * self.layout.row_bytes)
                missing -= set(part.rows)
                yield part.rows, self.layout.pack(features).cpu().contiguous()
        reasons = reader.left_out()
        self.broken = {index: reasons.get(self.images.source.describe(index), "") for index in sorted(missing)}

    def write_zeros(self, file: BinaryIO, place: int = 0, until: int | None = None) -> int:
        """Writes rows of zeros from `place` to `until`, by default the last row, and returns `until`."""
        until = len(self.indices) if until is None else until
        if self.layout is not None and until > place:
            file.write(bytes((until - place) * self.layout.row_bytes))
        return until


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


def check_room(folder: Path, need: float) -> None:
    """Raises ValueError where a disk has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"the features of all images take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder}: set "
            "PROBE.features to a folder with more room, or PROBE.keep_features false"
        )
