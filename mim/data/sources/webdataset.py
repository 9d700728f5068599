"""WebDataset: images in tar shards, read in any order by an index of their positions.

In this format, neighbouring members of a tar file that share a name are one sample. The package webdataset is not
used: it shuffles in a buffer and splits shards among ranks, so it cannot resume a run exactly, nor give the same
batches on another number of devices. Here the headers of a shard are read once, into an index that a cache folder keeps
(mim/data/sources/shards.py).
"""

import os
import re
from collections.abc import Sequence
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.images import READ_FLAGS, BrokenImage
from mim.data.decoding.names import printable_name
from mim.data.remote.files import RemoteFiles, Request, find_files, open_files
from mim.data.remote.shards import index_remote
from mim.data.remote.store import is_remote
from mim.data.settings import DataSettings
from mim.data.sources.base import Split, none_reachable
from mim.data.sources.encoded import EncodedSource
from mim.data.sources.held_out import by_share, check_share
from mim.data.sources.once import once
from mim.data.sources.shards import Labels, ShardIndex, index_shard

OPEN = 128  # shards that a process keeps open


class WebDataset(EncodedSource, name="webdataset"):
    """Tar shards as the package webdataset writes them: `0001.jpg`, `0001.cls`, `0002.jpg`, ...

    DATA.path is a pattern such as `/data/train-{000000..000146}.tar` or `/data/*.tar`, several patterns with `::`
    between them, or a folder of shards. Images have the order of the pattern, then of the members of a shard. Samples
    without an image are left out. On an object store DATA.path is an address such as `s3://bucket/train-{000..146}.tar`.

    Args:
        val_path: the shards of held-out images, as DATA.path.
        val_share: share of the images that is held out where val_path is empty, from 0 to below 1. A hash of shard and
            sample name decides.
        labels: `cls` takes the number in a sample's `.cls`; `json` the number of a key in its `.json`; `auto` either,
            if every sample has one; `none` gives no labels.
        json_key: the key of the label in `.json`.
        cache_gib: GiB, from 0, of copies of shards of an object store on this machine. Shards without a copy are read
            over the network, image by image, in the same order.
        cache: the folder of these copies, on a disk of this machine, for all data sets and processes; empty for
            `~/.cache/mim-toolkit/remote`.

    Raises ValueError where a shard is missing, compressed or damaged, where there are no images, and where an image
    lacks the label that `labels` names.
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
        cache_gib: float = 64.0,
        cache: str = "",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        uses_val_path = split == "val" and bool(val_path)
        key, pattern = ("DATA.val_path", val_path) if uses_val_path else ("DATA.path", settings.path)
        self._key = key
        self._remote: RemoteFiles | None = None
        self.shards: Sequence[Path | str]
        if is_remote(pattern):
            addresses = [address for part in pattern.split("::") for address in expand_braces(part)]
            store, files = once((self.name, key, pattern), lambda: find_files(key, addresses, settings, ".tar"))
            self._remote = open_files(store, files, settings, cache_gib, cache)
            self.shards = [file.url for file in files]
        else:
            self.shards = find_shards(key, pattern)
        contents = (self.name, *self.shards, labels, json_key)
        self._index, self._shards = once(contents, lambda: self._indices(labels, json_key))
        if not len(self._index):
            raise ValueError(f"{key} {pattern}: no member of {len(self.shards)} shards is an image")
        self._rows = np.arange(len(self._index))
        if not val_path:
            self._rows = by_share(self._index.hashes, val_share, split)
            self.held_out_share = val_share
        self._set_labels(labels, json_key)
        self._labels_in = ".cls" if labels == "cls" else f".json ({json_key})" if labels == "json" else ".cls or .json"
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def prefetch(self, indices: Sequence[int]) -> None:
        if self._remote is not None:
            self._remote.prefetch([self._request(index) for index in indices])

    def describe(self, index: int) -> str:
        row = int(self._rows[index])
        return printable_name(f"{self.shards[self._shards[row]]}/{self._index.name(row)}")

    def label_origin(self) -> str:
        return f"the labels in the {self._labels_in} of {self._key}"

    def missing(self) -> str:
        """Looks at some shards, evenly spread. Reading an object store waits by itself."""
        if self._remote is not None:
            return ""
        probed, reason = none_reachable([Path(shard) for shard in self.shards])
        tried = f"{len(probed)} of {len(self.shards)} shards were tried"
        return reason and f"{self._key} {printable_name(probed[0])}: {reason} ({tried})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def _request(self, index: int) -> Request:
        row = int(self._rows[index])
        return Request(int(self._shards[row]), int(self._index.offsets[row]), int(self._index.sizes[row]))

    def _content(self, index: int) -> bytes:
        request = self._request(index)
        if self._remote is not None:
            return self._remote.read(request)
        shard, offset, size = request
        try:
            content = self._read(shard, size, offset)
        except OSError as error:
            raise BrokenImage(str(error)) from error
        if len(content) < size:
            raise BrokenImage(f"{self.shards[shard]} has become shorter")
        return content

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        pread = getattr(os, "pread", None)
        if pread is not None:
            return pread(self._descriptor(shard), size, offset)
        with Path(self.shards[shard]).open("rb") as file:  # Windows reads at a position only by moving there
            file.seek(offset)
            return file.read(size)

    def _descriptor(self, shard: int) -> int:
        """The open shard. Reading at a position has no state, so several processes may use it."""
        if shard not in self._open:
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.shards[shard], READ_FLAGS)
        return self._open[shard]

    def _indices(self, labels: Labels, json_key: str) -> tuple[ShardIndex, np.ndarray]:
        """The images of all shards, and the number of the shard of each."""
        if self._remote is not None:
            indices = index_remote(self._remote, labels, json_key)
        else:
            indices = [index_shard(Path(shard), labels, json_key) for shard in self.shards]
        counts = [len(index) for index in indices]
        return ShardIndex.concatenated(indices), np.repeat(np.arange(len(indices), dtype=np.int32), counts)

    def _set_labels(self, labels: Labels, json_key: str) -> None:
        values = self._index.labels[self._rows]
        missing = np.flatnonzero(values < 0)
        if not len(missing) and len(values):
            self.labels = values
        elif labels in ("cls", "json") and len(missing):
            member = "a .cls" if labels == "cls" else f"a .json with {json_key}"
            raise ValueError(f"DATA.labels {labels}: {self.describe(int(missing[0]))} has no label: it needs {member}")


def find_shards(key: str, pattern: str) -> list[Path]:
    """The shards that the value of a key names, in order. Raises ValueError where one is missing or there is none."""
    if not pattern:
        raise ValueError(f"{key} is empty: name tar shards, as in /data/train-{{000000..000146}}.tar")
    shards: list[Path] = []
    for part in pattern.split("::"):
        if re.match(r"\w+:", part):
            raise ValueError(
                f"{key} {part}: shards are read in random order, so they must be files, or lie in an object store "
                "(s3://, gs://, hf://, https://)"
            )
        for name in expand_braces(part):
            folder = Path(name)
            names = sorted(glob(name)) if any(sign in name for sign in "*?[") and not folder.exists() else [name]
            shards += sorted(folder.glob("*.tar")) if folder.is_dir() else map(Path, names)
    if not shards:
        raise ValueError(f"{key} {pattern}: there are no such shards")
    missing = [path for path in shards if not path.is_file()]
    if missing:
        raise ValueError(f"{key} {pattern}: {len(missing)} of {len(shards)} shards are missing, such as {missing[0]}")
    return [path.absolute() for path in shards]


def expand_braces(pattern: str) -> list[str]:
    """As a shell: `a-{008..010}.tar` is a-008.tar, a-009.tar, a-010.tar, and `{a,b}.tar` is a.tar, b.tar."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[text] if number % 2 == 0 else _choices(text) for number, text in enumerate(parts)]
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
