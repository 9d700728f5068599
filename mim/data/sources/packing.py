"""Packing: from the images of a source to a packed data set, which mim/data/sources/packed.py reads.

Shapes: C channels, H W pixels.
"""

import io
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.decoding.names import encoded
from mim.data.loading.loader import in_order
from mim.data.loading.workers import Keys, Results
from mim.data.sources.base import Source, Split, size_of
from mim.data.sources.folder import Folder
from mim.data.sources.packed import ALIGNMENT, HEADER, INDEX, Contents, Header, PackedSplit
from mim.data.sources.resizing import fitted, shrunk
from mim.data.sources.retry import RetryingSource

LOG = logging.getLogger("mim")

CHUNK = 16  # images that a worker sends at once
LEFT_OUT = "left_out.txt"
JPEG_MODES = ("L", "RGB")


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How images are kept.

    short_side: pixels that the shorter side of an image is reduced to, never enlarged; 0 leaves sizes as they are;
    size: the height and width that every image gets instead, see fitted; store: pixels, or JPEG files of that quality;
    workers: processes, 0 for this one.
    """

    short_side: int = 256
    size: tuple[int, int] | None = None
    store: Literal["pixels", "jpeg"] = "pixels"
    quality: int = 90
    workers: int = 0

    def __post_init__(self) -> None:
        if self.short_side < 0:
            raise ValueError(f"--short-side is {self.short_side}: a number of pixels, or 0 for sizes as they are")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            given = " ".join(map(str, self.size))
            raise ValueError(f"--size is {given}: a height and a width in pixels, each at least 1, such as 256 256")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality is {self.quality}: it must be from 1 to 100")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}: it must be at least 0")


@dataclass(frozen=True, slots=True)
class Packing:
    """What was packed, and what could not be read: names with reasons."""

    header: Header
    broken: tuple[tuple[str, str], ...]


Kind = tuple[str, int, bool]  # dtype, channels, whether they are 8-bit pictures


@dataclass(frozen=True, slots=True)
class _Item:
    """An image ready to be written. reason: why it cannot be read, empty where it can."""

    content: bytes = b""
    height: int = 0
    width: int = 0
    kind: Kind = ("", 0, False)
    reason: str = ""


def pack(
    sources: Mapping[Split, Source], folder: Path, settings: PackSettings, progress: Callable[[int], None]
) -> Packing:
    """Writes the images of each split, in their order, to a new folder, which appears when it is complete.

    progress: called with the number of images done since the last call. Raises ValueError where the folder is there and
    not empty, no image can be read, images are stored in different types, or a JPEG file cannot hold them; DataLost
    where the images can no longer be reached.
    """
    with _aside(folder) as aside:
        kind: Kind | None = None
        broken: list[tuple[str, str]] = []
        splits: dict[str, Contents] = {}
        for split, source in sources.items():
            writer = _SplitWriter(aside, split, source, kind, broken)
            contents = writer.write(settings, progress)
            kind = writer.kind
            if len(source):  # also where none of it can be read: that split exists
                splits[split] = contents
        if kind is None or not splits["train"].images:
            reason = f", such as {broken[0][0]}: {broken[0][1]}" if broken else ""
            raise ValueError(f"there is no training image that can be read{reason}")
        training = sources["train"]
        header = Header(
            store=settings.store,
            dtype=kind[0],
            channels=kind[1],
            pictures=kind[2],
            short_side=min(settings.size) if settings.size else settings.short_side,
            size=settings.size,
            root=str(_root(training) or ""),
            classes=training.classes,
            splits=splits,
            left_out=len(broken),
        )
        if broken:
            (aside / LEFT_OUT).write_text("".join(f"{name}\t{reason}\n" for name, reason in broken), encoding="utf-8")
        (aside / HEADER).write_text(header.text(), encoding="utf-8")
    return Packing(header, tuple(broken))


def damaged(folder: Path, progress: Callable[[int], None]) -> list[str]:
    """The images of a packed folder whose bytes are no longer those that were written.

    Raises ValueError where the folder cannot be opened.
    """
    found = []
    for split, contents in Header.of(folder).splits.items():
        files = PackedSplit(folder, split, contents)
        for place in range(contents.images):
            try:
                content_N, _ = files.stored(place)
                if zlib.crc32(content_N.numpy().data) != files.index["crc32"][place]:
                    raise BrokenImage("its bytes have changed")
            except BrokenImage as error:
                found.append(f"{split} image {place}, {files.name(place)}: {error}")
            progress(1)
    return found


class _SplitWriter:
    """The files of one split while they are written."""

    def __init__(self, folder: Path, split: Split, source: Source, kind: Kind | None, broken: list[tuple[str, str]]):
        self.folder, self.split, self.source, self.kind, self.broken = folder, split, source, kind, broken
        self.root = _root(source)

    def write(self, settings: PackSettings, progress: Callable[[int], None]) -> Contents:
        """Reads, reduces and writes every image."""
        labels, rows, count = self.source.labels, np.zeros(len(self.source), INDEX), 0
        with self._file("images") as images, self._file("names") as names:
            for index, item in _items(self.source, settings):
                progress(1)
                if item.reason:
                    self.broken.append((self.source.describe(index), item.reason))
                    continue
                self._check(index, item.kind, settings)
                name = self._name(index)
                names.write(name)
                label = -1 if labels is None else int(labels[index])
                image = (images.tell(), len(item.content), item.height, item.width)
                rows[count] = (*image, label, names.tell(), zlib.crc32(name), zlib.crc32(item.content))
                count += 1
                images.write(item.content)
                images.write(bytes(-len(item.content) % ALIGNMENT))
            written = images.tell()
        if not count:
            for ending in ("images", "names"):
                (self.folder / f"{self.split}.{ending}").unlink()
            return Contents(images=0, bytes=0, labelled=False)
        with self._file("index") as file:
            np.save(file, rows[:count])
        return Contents(images=count, bytes=written, labelled=labels is not None)

    def _check(self, index: int, kind: Kind, settings: PackSettings) -> None:
        if settings.store == "jpeg" and not (kind[2] and kind[1] in (1, 3)):
            raise ValueError(
                f"--store jpeg keeps 8-bit grey and RGB pictures, and {self.source.describe(index)} is {_words(kind)}: "
                "use --store pixels"
            )
        self.kind = self.kind or kind
        if kind != self.kind:
            raise ValueError(
                f"{self.source.describe(index)} is {_words(kind)}, and images before it are {_words(self.kind)}: "
                "use one type"
            )

    def _name(self, index: int) -> bytes:
        if self.root is None or not isinstance(self.source, Folder):
            return encoded(self.source.describe(index))
        return encoded(os.path.relpath(self.source.paths[index], self.root))

    @contextmanager
    def _file(self, ending: str) -> Iterator[BinaryIO]:
        with (self.folder / f"{self.split}.{ending}").open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


class _Encoder:
    """Makes images of a source ready to be written."""

    def __init__(self, source: Source, settings: PackSettings):
        self.reader, self.settings = RetryingSource(source), settings

    def __call__(self, keys: Keys) -> list[_Item]:
        return [self._item(index) for _, index in keys]

    def _item(self, index: int) -> _Item:
        try:
            image, size = self.reader.read(index), self.settings.size
            image = fitted(image, size) if size else shrunk(image, self.settings.short_side)
        except BrokenImage as error:
            return _Item(reason=str(error))
        height, width = size_of(image)
        if isinstance(image, Tensor):
            kind = (str(image.dtype).removeprefix("torch."), len(image), False)
            return _Item(image.permute(1, 2, 0).contiguous().numpy().tobytes(), height, width, kind)
        kind = ("uint8", len(image.getbands()), True)
        if self.settings.store == "pixels" or image.mode not in JPEG_MODES:
            return _Item(image.tobytes(), height, width, kind)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.settings.quality)
        return _Item(file.getvalue(), height, width, kind)


def _items(source: Source, settings: PackSettings) -> Iterator[tuple[int, _Item]]:
    """Every image with its index, in order."""
    order = in_order(range(len(source)), CHUNK)
    with closing(Results(_Encoder(source, settings), order, settings.workers, source, pin_memory=False)) as results:
        yield from enumerate(item for items in results for item in items)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside the one asked for, which takes its place at the end, or goes where something went wrong."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not empty: name a new folder")
    folder = Path(os.path.abspath(folder))
    aside = folder.with_name(folder.name + ".partial")
    if aside.exists():  # of a process that was killed
        _remove(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.replace(folder)
    except BaseException:
        shutil.rmtree(aside)
        raise


def _remove(aside: Path) -> None:
    ours = {HEADER, LEFT_OUT, *(f"{split}.{end}" for split in ("train", "val") for end in ("images", "index", "names"))}
    if not aside.is_dir() or {path.name for path in aside.iterdir()} - ours:
        raise ValueError(f"{aside} is in the way: remove it, or name another folder")
    shutil.rmtree(aside)


def _root(source: Source) -> Path | None:
    """What names are relative to, and so what their hash is taken of, as in Folder; None where they are no files."""
    if not isinstance(source, Folder):
        return None
    path = Path(source.settings.path).absolute()
    path = path / "train" if (path / "train").is_dir() else path
    return path if path.is_dir() else path.parent


def _words(kind: Kind) -> str:
    dtype, channels, pictures = kind
    return f"{'a picture' if pictures else 'an array'} of {channels} channels of {dtype}"
