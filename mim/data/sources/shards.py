"""ShardIndex: the positions of the images in a tar shard, read once from its headers and kept in a cache folder.

The cache is $XDG_CACHE_HOME/mim-toolkit or ~/.cache/mim-toolkit. A shard that has changed is read again.
"""

import hashlib
import json
import logging
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from mim.data.decoding.images import EXTENSIONS
from mim.data.sources.base import DAMAGED_INDEX, cache_folder
from mim.io.files import write_atomically

LOG = logging.getLogger("mim")

VERSION = 1  # of the files in the cache
BLOCK = 512
Labels = Literal["auto", "cls", "json", "none"]
Rows = list[tuple[str, int, int, int]]  # name, offset, size and label of each image
Members = dict[str, tarfile.TarInfo]  # of one sample, by the ending of their names from the first dot


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """The images of one or several shards, in order."""

    offsets: np.ndarray  # byte at which each image begins
    sizes: np.ndarray  # bytes of each image
    labels: np.ndarray  # -1 where there is no label
    hashes: np.ndarray  # CRC-32 of shard and sample name
    name_ends: np.ndarray  # end of the name of each image in `names`
    names: np.ndarray  # all names, one after the other

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def of(cls, shard: str, rows: Rows) -> "ShardIndex":
        """From rows. shard: its name without the folder."""
        names = [name.encode(errors="replace") for name, *_ in rows]
        offsets, sizes, labels = (np.array([row[column] for row in rows], np.int64) for column in (1, 2, 3))
        return cls(
            offsets,
            sizes,
            labels,
            np.array([zlib.crc32(shard.encode(errors="replace") + b"/" + name) for name in names], np.uint32),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.frombuffer(b"".join(names), np.uint8),
        )

    @classmethod
    def concatenated(cls, parts: list["ShardIndex"]) -> "ShardIndex":
        """The images of all parts, one part after the other."""
        before = np.cumsum([0, *(len(part.names) for part in parts)])
        ends = [part.name_ends + start for part, start in zip(parts, before, strict=False)]
        columns = {key.name: [getattr(part, key.name) for part in parts] for key in fields(cls)} | {"name_ends": ends}
        return cls(**{name: np.concatenate(arrays) for name, arrays in columns.items()})

    def name(self, row: int) -> str:
        """The name of the member that holds an image."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : int(self.name_ends[row])].tobytes().decode("utf-8", "surrogateescape")


def index_shard(shard: Path, labels: Labels, json_key: str) -> ShardIndex:
    """The images of a shard, from the cache where it is there already.

    Raises ValueError where the shard cannot be read, or a label is no number.
    """
    stat = shard.stat()
    identity = (str(shard), stat.st_size, stat.st_mtime_ns)
    return index_opened(str(shard), shard.name, identity, lambda: shard.open("rb"), labels, json_key)


def index_opened(
    shard: str,
    name: str,
    identity: Sequence[Any],
    opened: Callable[[], BinaryIO],
    labels: Labels,
    json_key: str,
) -> ShardIndex:
    """The images of a shard, from the cache where it is there already.

    Args:
        shard: its name for a person.
        name: its name without the folder, a part of the hashes.
        identity: what is another where its content is another.
        opened: opens it for reading.
        labels: as of WebDataset.
        json_key: as of WebDataset.

    Raises ValueError where the shard cannot be read, or a label is no number.
    """
    key = [VERSION, *identity, labels, json_key]
    folder = cache_folder("shards")
    file = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return ShardIndex(**{field.name: arrays[field.name] for field in fields(ShardIndex)})
    except DAMAGED_INDEX:
        pass  # not there, or damaged
    LOG.info("indexing %s", shard)
    index = ShardIndex.of(name, _read_shard(shard, opened, labels, json_key))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        columns = {field.name: getattr(index, field.name) for field in fields(index)}
        write_atomically(file, lambda stream: np.savez(stream, **columns))
    except OSError as error:  # the index only saves time
        LOG.warning("the index of %s is not kept: %s", shard, error)
    return index


def _read_shard(shard: str, opened: Callable[[], BinaryIO], labels: Labels, json_key: str) -> Rows:
    rows: Rows = []
    sample, members = "", Members()
    try:
        with opened() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, base = posixpath.split(member.name)
                stem, _, ending = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                if (name := posixpath.join(folder, stem)) != sample or ending.lower() in members:
                    rows += _rows(shard, members, file, labels, json_key)
                    sample, members = name, Members()
                members[ending.lower()] = member
            rows += _rows(shard, members, file, labels, json_key)
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"it breaks off after {tar.offset:,} bytes")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{shard} is compressed, damaged, or no tar file ({error}): unpack it (gunzip), copy it again, or leave it "
            "out"
        ) from error
    return rows


def _rows(shard: str, members: Members, file: BinaryIO, labels: Labels, json_key: str) -> Rows:
    """The row of a sample; none where it has no image."""
    image = next((ending for ending in members if f".{ending}" in EXTENSIONS), None)
    if image is None:
        image = next((ending for ending in members if posixpath.splitext(ending)[1] in EXTENSIONS), None)
    if image is None:
        return []
    member = members[image]
    return [(member.name, member.offset_data, member.size, _label(shard, members, file, labels, json_key))]


def _label(shard: str, members: Members, file: BinaryIO, labels: Labels, json_key: str) -> int:
    """-1 where there is none."""
    kind = next((kind for kind in ("cls", "json") if labels in ("auto", kind) and kind in members), None)
    if kind is None:
        return -1
    member = members[kind]
    file.seek(member.offset_data)  # tarfile seeks to its own position again
    content = file.read(member.size)
    try:
        value = int(content) if kind == "cls" else json.loads(content).get(json_key, -1)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
    except (ValueError, TypeError, AttributeError) as error:
        if kind == "json" and labels == "auto":
            return -1
        raise ValueError(
            f"{shard}/{member.name} holds {content[:40]!r}: a label is a number from 0; DATA.labels none ignores it"
        ) from error
    return value if value >= 0 else -1
