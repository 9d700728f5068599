"""Feature files: what a frozen encoder makes of the images of a data set, in files that are mapped into memory.

FOLDER/<fingerprint>/rank0-of-1.bin    a row of numbers for each image of that rank
FOLDER/<fingerprint>/features.json     what the rows mean; written last

Shapes: N images, B batch, V numbers of one image.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mim.io.files import write_json
from mim.structures import Features

INDEX = "features.json"


@dataclass(frozen=True, slots=True)
class FeatureLayout:
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
class FeatureFiles:
    """The rows of the images of one data set."""

    folder: Path
    layout: FeatureLayout
    ranks: int  # that computed them: rank r has the images r, r + ranks, ...
    images: int
    broken: dict[int, str]  # why an image has no features, by index

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Those of a folder; None where they are not complete."""
        try:
            raw = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            broken = {int(index): reason for index, reason in raw["broken"].items()}
            files = cls(folder, FeatureLayout.read(raw["layout"]), raw["ranks"], raw["images"], broken)
            sizes = [files.file(rank).stat().st_size for rank in range(files.ranks) if files.rows(rank)]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        complete = [files.rows(rank) * files.layout.row_bytes for rank in range(files.ranks) if files.rows(rank)]
        return files if sizes == complete else None

    def file(self, rank: int) -> Path:
        """The rows of one rank."""
        return rank_file(self.folder, rank, self.ranks)

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


def rank_file(folder: Path, rank: int, ranks: int) -> Path:
    """The name of the rows of one rank."""
    return folder / f"rank{rank}-of-{ranks}.bin"


def check_room(folder: Path, need: float) -> None:
    """Raises ValueError where a disk has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"the features of all images take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder}: set "
            "PROBE.features to a folder with more room, or PROBE.keep_features false"
        )
