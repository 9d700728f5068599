"""Packing: writes the images of a source as a packed data set, which mim/data/sources/packed.py reads.

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
from mim.data.sources.resizing import fit_to_size, reduce_to_short_side
from mim.data.sources.retry import RetryingSource

LOG = logging.getLogger("mim")

CHUNK = 16  # images that a worker sends at once
LEFT_OUT = "left_out.txt"
JPEG_MODES = ("L", "RGB")


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How images are stored."""

    short_side: int = 256  # pixels to which the shorter side of a larger image is reduced; 0 leaves sizes as they are
    size: tuple[int, int] | None = None  # height and width of every image, instead of short_side; see fit_to_size
    store: Literal["pixels", "jpeg"] = "pixels"  # `pixels`, or `jpeg` files
    quality: int = 90  # of JPEG files, from 1 to 100
    workers: int = 0  # processes; 0 for this one

    def __post_init__(self) -> None:
        if self.short_side < 0:
            raise ValueError(f"--short-side is {self.short_side}: a number of pixels, or 0 for sizes as they are")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            value = " ".join(map(str, self.size))
            raise ValueError(f"--size is {value}: a height and a width in pixels, each at least 1, such as 256 256")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality is {self.quality}: it must be from 1 to 100")
        if self.workers < 0:
            raise ValueError(f"--workers is {self.workers}: it must be at least 0")


@dataclass(frozen=True, slots=True)
class Packing:
    """The header of what was packed, and the images that could not be read: names with reasons."""

    header: Header
    broken: tuple[tuple[str, str], ...]


Format = tuple[str, int, bool]  # dtype, channels, whether the images are 8-bit pictures


@dataclass(frozen=True, slots=True)
class _Item:
    """An image ready to be written. reason: why it cannot be read; empty where it can."""

    content: bytes = b""
    height: int = 0
    width: int = 0
    format: Format = ("", 0, False)
    reason: str = ""


def pack(
    sources: Mapping[Split, Source], folder: Path, settings: PackSettings, progress: Callable[[int], None]
) -> Packing:
    """Writes the images of each split, in their order, to a new folder, which appears when it is complete.

    Args:
        sources: the images of each split.
        folder: the new folder.
        settings: how images are stored.
        progress: called with the number of images done since the last call.

    Raises ValueError where the folder exists and is not empty, no image can be read, images are stored in different
    types, or a JPEG file cannot hold them; DataLost where the images can no longer be reached.
    """
    with _partial_folder(folder) as partial:
        image_format: Format | None = None
        broken: list[tuple[str, str]] = []
        splits: dict[str, Contents] = {}
        for split, source in sources.items():
            writer = _SplitWriter(partial, split, source, image_format, broken)
            contents = writer.write(settings, progress)
            image_format = writer.format
            if len(source):  # also where no image of it can be read: the split exists
                splits[split] = contents
        if image_format is None or not splits["train"].images:
            reason = f", such as {broken[0][0]}: {broken[0][1]}" if broken else ""
            raise ValueError(f"there is no training image that can be read{reason}")
        training = sources["train"]
        header = Header(
            store=settings.store,
            dtype=image_format[0],
            channels=image_format[1],
            pictures=image_format[2],
            short_side=min(settings.size) if settings.size else settings.short_side,
            size=settings.size,
            root=str(_root(training) or ""),
            classes=training.classes,
            splits=splits,
            left_out=len(broken),
        )
        if broken:
            (partial / LEFT_OUT).write_text("".join(f"{name}\t{reason}\n" for name, reason in broken), encoding="utf-8")
        (partial / HEADER).write_text(header.text(), encoding="utf-8")
    return Packing(header, tuple(broken))


def damaged(folder: Path, progress: Callable[[int], None]) -> list[str]:
    """The images of a packed folder that have changed since they were written, a line each.

    Raises ValueError where the folder cannot be opened.
    """
    lines = []
    for split, contents in Header.of(folder).splits.items():
        files = PackedSplit(folder, split, contents)
        for row in range(contents.images):
            try:
                content_N, _ = files.content(row)
                if zlib.crc32(content_N.numpy().data) != files.index["crc32"][row]:
                    raise BrokenImage("its bytes have changed")
            except BrokenImage as error:
                lines.append(f"{split} image {row}, {files.name(row)}: {error}")
            progress(1)
    return lines


class _SplitWriter:
    """The files of one split while they are written."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        source: Source,
        image_format: Format | None,
        broken: list[tuple[str, str]],
    ):
        self.folder, self.split, self.source, self.format, self.broken = folder, split, source, image_format, broken
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
                self._check(index, item.format, settings)
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

    def _check(self, index: int, image_format: Format, settings: PackSettings) -> None:
        _, channels, pictures = image_format
        if settings.store == "jpeg" and not (pictures and channels in (1, 3)):
            raise ValueError(
                f"--store jpeg keeps 8-bit grey and RGB pictures, and {self.source.describe(index)} is "
                f"{_words(image_format)}: use --store pixels"
            )
        self.format = self.format or image_format
        if image_format != self.format:
            raise ValueError(
                f"{self.source.describe(index)} is {_words(image_format)}, and images before it are "
                f"{_words(self.format)}: use one type"
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
            image = fit_to_size(image, size) if size else reduce_to_short_side(image, self.settings.short_side)
        except BrokenImage as error:
            return _Item(reason=str(error))
        height, width = size_of(image)
        if isinstance(image, Tensor):
            image_format = (str(image.dtype).removeprefix("torch."), len(image), False)
            return _Item(image.permute(1, 2, 0).contiguous().numpy().tobytes(), height, width, image_format)
        image_format = ("uint8", len(image.getbands()), True)
        if self.settings.store == "pixels" or image.mode not in JPEG_MODES:
            return _Item(image.tobytes(), height, width, image_format)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.settings.quality)
        return _Item(file.getvalue(), height, width, image_format)


def _items(source: Source, settings: PackSettings) -> Iterator[tuple[int, _Item]]:
    """Every image with its index, in order."""
    order = in_order(range(len(source)), CHUNK)
    with closing(Results(_Encoder(source, settings), order, settings.workers, source, pin_memory=False)) as results:
        yield from enumerate(item for items in results for item in items)


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets the right name at the end, and is removed after an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: name a new folder")
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # from a process that was killed
        _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _remove(partial: Path) -> None:
    ours = {HEADER, LEFT_OUT, *(f"{split}.{end}" for split in ("train", "val") for end in ("images", "index", "names"))}
    if not partial.is_dir() or {path.name for path in partial.iterdir()} - ours:
        raise ValueError(f"{partial} is in the way: remove it, or name another folder")
    shutil.rmtree(partial)


def _root(source: Source) -> Path | None:
    """The folder to which names are relative, as in Folder; None where the images are not files."""
    if not isinstance(source, Folder):
        return None
    path = Path(source.settings.path).absolute()
    path = path / "train" if (path / "train").is_dir() else path
    return path if path.is_dir() else path.parent


def _words(image_format: Format) -> str:
    dtype, channels, pictures = image_format
    return f"{'a picture' if pictures else 'an array'} of {channels} channels of {dtype}"
