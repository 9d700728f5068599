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
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.decoding.names import encoded
from mim.data.loading.loader import Keys, Results, in_order
from mim.data.sources.base import Source, Split, Stored, size_of
from mim.data.sources.classes import class_labels
from mim.data.sources.folder import Folder
from mim.data.sources.packed import ALIGNMENT, INDEX, PackedSplit
from mim.data.sources.packed_header import HEADER, Contents, Header
from mim.data.sources.resizing import around_gaps, fit_to_size, reduce_to_short_side
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

    def resized(self, image: Stored) -> Stored:
        """An image as it is stored. Raises BrokenImage as the functions of resizing.py do."""
        return fit_to_size(image, self.size) if self.size else reduce_to_short_side(image, self.short_side)


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
    with _partial_folder(folder) as part:
        writer, training = _Writer(part, settings, progress), sources["train"]
        contents = {split: writer.write(split, source) for split, source in sources.items()}
        broken = writer.broken
        if writer.format is None or not contents["train"].images:
            reason = f", such as {broken[0][0]}: {broken[0][1]}" if broken else ""
            raise ValueError(f"there is no training image that can be read{reason}")
        dtype, channels, pictures = writer.format
        header = Header(
            store=settings.store,
            dtype=dtype,
            channels=channels,
            pictures=pictures,
            short_side=min(settings.size) if settings.size else settings.short_side,
            size=settings.size,
            root=str(_root(training) or ""),
            classes=training.classes,
            splits={split: contents[split] for split, source in sources.items() if len(source)},
            left_out=len(broken),
            channels_from=training.settings.selection.numbers,
        )
        if broken:
            (part / LEFT_OUT).write_text("".join(f"{name}\t{reason}\n" for name, reason in broken), encoding="utf-8")
        (part / HEADER).write_text(header.text(), encoding="utf-8")
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


class _Writer:
    """Writes the files of all splits. Attributes: format, of the images so far; broken, images that cannot be read."""

    def __init__(self, folder: Path, settings: PackSettings, progress: Callable[[int], None]):
        self.folder, self.settings, self.progress = folder, settings, progress
        self.format: Format | None = None
        self.broken: list[tuple[str, str]] = []

    def write(self, split: Split, source: Source) -> Contents:
        """Reads, reduces and writes every image of a split."""
        rows, count, root = np.zeros(len(source), INDEX), 0, _root(source)
        labels = class_labels(source)
        make, order = partial(_encode, RetryingSource(source), self.settings), in_order(range(len(source)), CHUNK)
        with (
            self._file(split, "images") as images,
            self._file(split, "names") as names,
            closing(Results(make, order, self.settings.workers, source, pin_memory=False)) as results,
        ):
            for index, item in enumerate(item for items in results for item in items):
                self.progress(1)
                if item.reason:
                    self.broken.append((source.describe(index), item.reason))
                    continue
                self._check(source.describe(index), item.format)
                name = source.describe(index)
                if root is not None and isinstance(source, Folder):
                    name = os.path.relpath(source.paths[index], root)
                label = -1 if labels is None else int(labels[index])
                image = (images.tell(), len(item.content), item.height, item.width)
                hashes = zlib.crc32(encoded(name)), zlib.crc32(item.content)
                names.write(encoded(name))
                rows[count] = (*image, label, names.tell(), *hashes)
                count += 1
                images.write(item.content)
                images.write(bytes(-len(item.content) % ALIGNMENT))
            written = images.tell()
        if not count:
            for ending in ("images", "names"):
                (self.folder / f"{split}.{ending}").unlink()
            return Contents(images=0, bytes=0, labelled=False)
        with self._file(split, "index") as file:
            np.save(file, rows[:count])
        return Contents(images=count, bytes=written, labelled=labels is not None)

    def _check(self, name: str, image_format: Format) -> None:
        _, channels, pictures = image_format
        if self.settings.store == "jpeg" and not (pictures and channels in (1, 3)):
            raise ValueError(
                f"--store jpeg keeps 8-bit grey and RGB pictures, and {name} is {_words(image_format)}: use --store "
                "pixels"
            )
        self.format = self.format or image_format
        if image_format != self.format:
            before = _words(self.format)
            raise ValueError(f"{name} is {_words(image_format)}, and images before it are {before}: use one type")

    @contextmanager
    def _file(self, split: Split, ending: str) -> Iterator[BinaryIO]:
        with (self.folder / f"{split}.{ending}").open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def _encode(reader: RetryingSource, settings: PackSettings, keys: Keys) -> list[_Item]:
    """Images of a source, ready to be written."""
    return [_item(reader, settings, index) for _, index in keys]


def _item(reader: RetryingSource, settings: PackSettings, index: int) -> _Item:
    try:
        image = around_gaps(reader.read_stored(index), reader.source.settings.nodata_value, settings.resized)
    except BrokenImage as error:
        return _Item(reason=str(error))
    size = size_of(image)
    if isinstance(image, Tensor):
        image_format = (str(image.dtype).removeprefix("torch."), len(image), False)
        return _Item(image.permute(1, 2, 0).contiguous().numpy().tobytes(), *size, image_format)
    image_format = ("uint8", len(image.getbands()), True)
    if settings.store == "pixels" or image.mode not in JPEG_MODES:
        return _Item(image.tobytes(), *size, image_format)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=settings.quality)
    return _Item(file.getvalue(), *size, image_format)


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A folder that gets the right name at the end, and is removed after an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: name a new folder")
    folder = Path(os.path.abspath(folder))
    part = folder.with_name(folder.name + ".partial")
    if part.exists():  # from a process that was killed
        endings = ("images", "index", "names")
        ours = {HEADER, LEFT_OUT, *(f"{split}.{ending}" for split in ("train", "val") for ending in endings)}
        if not part.is_dir() or {path.name for path in part.iterdir()} - ours:
            raise ValueError(f"{part} is in the way: remove it, or name another folder")
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part)
        raise


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
