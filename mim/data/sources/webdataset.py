"""WebDataset: images in tar shards, read at random by an index of where each one lies.

The format is tar files in which neighbouring members of one name belong together: Python's tarfile finds them, and the
package webdataset is not needed. Its iterators shuffle in a buffer and split shards among ranks, so they cannot resume
a run exactly, nor show it the same batches on another number of devices. Here the headers of a shard are walked once,
and what was found is kept in a cache folder (mim/data/sources/shards.py).
"""

import os
import re
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.decoding.names import printable_name
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Split, Stored, unreachable
from mim.data.sources.held_out import by_share, check_share
from mim.data.sources.shards import Labels, ShardIndex, index_shard

OPEN = 128  # shards that a process keeps open
TRIED = 8  # shards that are looked for where an image cannot be read


class WebDataset(Source, name="webdataset"):
    """Tar shards as the package webdataset writes them: `0001.jpg`, `0001.cls`, `0002.jpg`, ...

    DATA.path names them: a pattern such as `/data/train-{000000..000146}.tar` or `/data/*.tar`, several with `::`
    between them, or a folder of shards. Order is that of the pattern, and in a shard that of its members. A sample
    without an image is no sample.

    Args:
        val_path: the shards of held-out images.
        val_share: without them, this share is held out, chosen by a hash of shard and sample name; 0 holds none out.
        labels: `cls` takes the number in a sample's `.cls`, `json` that of a key in its `.json`, `auto` whichever is
            there, if every sample has one; `none` none.
        json_key: that key.

    Raises ValueError where a shard is missing, compressed or damaged, where there are no images, and where an image
    lacks the label that was asked for.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        val_path: str = "",
        val_share: float = 0.05,
        labels: Labels = "auto",
        json_key: str = "label",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        own = split == "val" and bool(val_path)
        key, pattern = ("DATA.val_path", val_path) if own else ("DATA.path", settings.path)
        self.shards, self._key = find_shards(key, pattern), key
        found = [index_shard(shard, labels, json_key) for shard in self.shards]
        self._index = ShardIndex.joined(found)
        self._shards = np.repeat(np.arange(len(found)), [len(index) for index in found])
        if not len(self._index):
            raise ValueError(f"{key} {pattern}: no member of {len(found)} shards is an image")
        self._places = np.arange(len(self._index))
        if not val_path:
            self._places = by_share(self._index.hashes, val_share, split)
        self._set_labels(labels, json_key)
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Stored:
        return decode(self._content(index), self.settings.channels)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(self._content(index), self.settings.channels, need_of)

    def describe(self, index: int) -> str:
        place = int(self._places[index])
        return printable_name(f"{self.shards[self._shards[place]]}/{self._index.name(place)}")

    def missing(self) -> str:
        """Whether any of some shards, evenly spread, is there."""
        spread = self.shards[:: max(1, len(self.shards) // TRIED)][:TRIED]
        reasons = [reason for shard in spread if (reason := unreachable(shard))]
        if len(reasons) < len(spread):
            return ""
        return f"{self._key} {printable_name(spread[0])}: {reasons[0]} ({len(spread)} of {len(self.shards)} shards were tried)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)

    def _content(self, index: int) -> bytes:
        place = int(self._places[index])
        shard, size = int(self._shards[place]), int(self._index.sizes[place])
        try:
            content = os.pread(self._file(shard), size, int(self._index.offsets[place]))
        except OSError as error:
            raise BrokenImage(str(error)) from error
        if len(content) < size:
            raise BrokenImage(f"{self.shards[shard]} has become shorter")
        return content

    def _file(self, shard: int) -> int:
        """The open shard. Reading at a position needs no state, so processes may share it."""
        if shard not in self._open:
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._open[shard]

    def _set_labels(self, labels: Labels, json_key: str) -> None:
        chosen = self._index.labels[self._places]
        missing = np.flatnonzero(chosen < 0)
        if not len(missing) and len(chosen):
            self.labels = chosen
        elif labels in ("cls", "json") and len(missing):
            where = "a .cls" if labels == "cls" else f"a .json with {json_key}"
            raise ValueError(f"DATA.labels {labels}: {self.describe(int(missing[0]))} has no label, {where} beside it")


def find_shards(key: str, pattern: str) -> list[Path]:
    """The shards that a value of a key names, in order. Raises ValueError where one is missing, or there are none."""
    if not pattern:
        raise ValueError(f"{key} is empty: name tar shards, as in /data/train-{{000000..000146}}.tar")
    found: list[Path] = []
    for part in pattern.split("::"):
        if re.match(r"\w+:", part):
            raise ValueError(f"{key} {part}: shards are read at random, so they must be files: download them first")
        for name in expand_braces(part):
            folder = Path(name)
            names = sorted(glob(name)) if any(sign in name for sign in "*?[") and not folder.exists() else [name]
            found += sorted(folder.glob("*.tar")) if folder.is_dir() else map(Path, names)
    if not found:
        raise ValueError(f"{key} {pattern}: there are no such shards")
    gone = [path for path in found if not path.is_file()]
    if gone:
        raise ValueError(f"{key} {pattern}: {len(gone)} of {len(found)} shards are missing, such as {gone[0]}")
    return [path.absolute() for path in found]


def expand_braces(pattern: str) -> list[str]:
    """`a-{008..010}.tar` is a-008.tar, a-009.tar, a-010.tar, and `{a,b}.tar` a.tar, b.tar, as a shell has it."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[text] if place % 2 == 0 else _choices(text) for place, text in enumerate(parts)]
    return ["".join(words) for words in product(*choices)]


def _choices(text: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not ends:
        return text.split(",") if "," in text else [f"{{{text}}}"]
    first, last = ends.groups()
    step = 1 if int(first) <= int(last) else -1
    padded = first.startswith("0") or last.startswith("0")
    width = max(len(first), len(last)) if padded else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
