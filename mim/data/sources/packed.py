"""Packed: images that tools/pack.py has resized and written into one file, with their index.

It stores pixels, because decoding is the main cost. One core read, in random order and cropped to 224 px, 3,710
photographs of short side 256 a second as pixels, 1,368 as JPEG with the same index (torchvision's decoder; 895 with
Pillow's), 910 from tar shards by index and 494 from litdata's chunks (both with Pillow's). A photograph takes 260 kB as
pixels and 29 kB as JPEG of quality 90, which is there for small disks.

A folder holds packed.json (Header) and for each split `<split>.images` (each image at a multiple of 64 bytes, as rows
of pixels with the channels innermost, or as a JPEG file), `<split>.index` (an array of INDEX) and `<split>.names`.
Shapes: C channels, H W pixels.
"""

import io
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mim.data.decoding.images import READ_FLAGS, BrokenImage, decode, decode_reduced
from mim.data.decoding.names import printable_name
from mim.data.decoding.pictures import check_channels
from mim.data.decoding.selection import pick
from mim.data.remote.files import RemoteFiles, Request
from mim.data.remote.packed import RemoteFolder
from mim.data.remote.store import is_remote
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Split, Stored
from mim.data.sources.held_out import by_share, check_share
from mim.data.sources.packed_header import DTYPES, HEADER, Contents, Header

ALIGNMENT = 64
INDEX = np.dtype(
    [
        ("offset", "<i8"),  # of the image in <split>.images
        ("size", "<i8"),  # in bytes
        ("height", "<i4"),
        ("width", "<i4"),
        ("label", "<i8"),  # -1 for none
        ("name_end", "<i8"),  # in <split>.names; the name begins at the end of the name before
        ("hash", "<u4"),  # CRC-32 of the name, for DATA.val_share
        ("crc32", "<u4"),  # of the image's bytes
    ]
)


class PackedSplit:
    """The three files of a split, memory-mapped, so that opening reads nothing; or on an object store.

    Attributes: index, (images,) of INDEX; images_N, the bytes of all images, which must not be changed; remote, the
    images on an object store, or None.

    Raises ValueError where a file is missing, too short, or another file.
    """

    remote: RemoteFiles | None = None

    def __init__(self, folder: Path | RemoteFolder, split: str, contents: Contents):
        try:
            length = self._open(folder, split)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"DATA.path {folder}: {split} cannot be opened ({error}): copy or pack it again"
            ) from error
        names = f"{folder}/{split}"
        if self.index.dtype != INDEX or self.index.shape != (contents.images,):
            raise ValueError(f"{names}.index does not hold {contents.images} images: copy or pack it again")
        sizes = (
            ("images", length, contents.bytes),
            ("names", len(self._names_N), int(self.index["name_end"][-1])),
        )
        for file, size, written in sizes:
            if size != written:
                raise ValueError(
                    f"{names}.{file} has {size:,} bytes and {written:,} were written: copy or pack it again"
                )

    def _open(self, folder: Path | RemoteFolder, split: str) -> int:
        """Opens the files, and returns the bytes of the images."""
        if isinstance(folder, RemoteFolder):
            self.index = np.load(io.BytesIO(folder.bytes(f"{split}.index").tobytes()), allow_pickle=False)
            self._names_N = folder.bytes(f"{split}.names")
            self.remote = folder.images(f"{split}.images")
            return self.remote.files[0].size
        self.index = np.load(folder / f"{split}.index", mmap_mode="r", allow_pickle=False)
        self._names_N = np.memmap(folder / f"{split}.names", np.uint8, mode="r")
        images_N = np.memmap(folder / f"{split}.images", np.uint8, mode="r")
        with warnings.catch_warnings():  # PyTorch warns that it has no read-only tensors
            warnings.simplefilter("ignore")
            self.images_N = torch.from_numpy(images_N)
        self._descriptor = os.open(folder / f"{split}.images", READ_FLAGS)  # for its size
        return len(images_N)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def content(self, row: int) -> tuple[Tensor, tuple[int, int]]:
        """The bytes of an image, and its height and width.

        Raises BrokenImage where the index is wrong, or the file has become shorter since it was opened: reading its
        missing part would end this process.
        """
        offset, size, height, width = self.index[row].item()[:4]
        length = len(self.images_N) if self.remote is None else self.remote.files[0].size
        if min(offset, size - 1, height - 1, width - 1) < 0 or offset % ALIGNMENT or offset + size > length:
            raise BrokenImage(f"the index says {size} bytes at {offset}, for {height} x {width} pixels")
        if self.remote is not None:
            content = bytearray(self.remote.read(Request(0, offset, size)))
            return torch.frombuffer(content, dtype=torch.uint8), (height, width)
        try:
            if os.fstat(self._descriptor).st_size < offset + size:
                raise BrokenImage("the packed file has become shorter")
        except OSError as error:
            raise BrokenImage(str(error)) from error
        return self.images_N[offset : offset + size], (height, width)

    def name(self, row: int) -> str:
        """The name of the file that an image was packed from."""
        start = int(self.index["name_end"][row - 1]) if row else 0
        return bytes(self._names_N[start : int(self.index["name_end"][row])]).decode("utf-8", "surrogateescape")


class Packed(Source, name="packed"):
    """A folder that tools/pack.py wrote, with the order, labels and class names of its images.

    Reading copies nothing: a crop is taken from the mapped file.

    Args:
        val_share: share of the images that is held out where no held-out images were packed, from 0 to below 1; the
            same images that DATA.name folder would hold out.
        cache_gib: GiB, from 0, of copies of pieces of a packed set on an object store, on this machine. Images without
            a copy are read over the network one by one, in the same order.
        cache: the folder of these copies, on a disk of this machine, for all data sets and processes; empty for
            `~/.cache/mim-toolkit/remote`.

    Raises ValueError where the folder is no packed data set, is damaged or too new, or has other channels than
    DATA.channels.
    """

    chooses_channels = True

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        val_share: float = 0.05,
        cache_gib: float = 64.0,
        cache: str = "",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        if not settings.path:
            raise ValueError("DATA.path is empty: name a folder that tools/pack.py wrote")
        self._keys: dict[str, Any] = {"val_share": val_share}
        folder: Path | RemoteFolder
        if is_remote(settings.path):
            self._keys |= {"cache_gib": cache_gib, "cache": cache}
            folder = RemoteFolder(settings.path, settings, cache_gib, cache)
            self.header = Header.parsed(folder.text(HEADER), f"{folder}/{HEADER}")
        else:
            folder = Path(settings.path).absolute()
            self.header = Header.of(folder)
        self._check_channels(folder)
        has_val = "val" in self.header.splits
        contents = self.header.splits.get(split if has_val else "train")
        self._rows = np.arange(0)
        if contents is not None and contents.images:
            self._files = PackedSplit(folder, split if has_val else "train", contents)
            self._rows = np.arange(contents.images)
            if not has_val:
                self._rows = by_share(self._files.index["hash"], val_share, split)
                self.held_out_share = val_share
            if contents.labelled and len(self._rows):
                self.classes = self.header.classes
                self.labels = np.ascontiguousarray(self._files.index["label"])[self._rows]

    def _check_channels(self, folder: Path | RemoteFolder) -> None:
        """Raises ValueError where the packed images have other channels, or were packed by DATA.channels_from."""
        numbers, channels = self.settings.selection.numbers, self.header.channels
        if not numbers and self.settings.channels != channels:
            raise ValueError(
                f"DATA.channels is {self.settings.channels} and the images packed in {folder} have {channels}: "
                "set it to that, or pack again"
            )
        if not numbers and self.header.pictures:
            check_channels(channels)
        if numbers and self.header.channels_from:
            raise ValueError(
                f"DATA.channels_from is {list(numbers)}, and the images in {folder} were packed with it as "
                f"{list(self.header.channels_from)}: leave it out"
            )
        wrong = [number for number in numbers if isinstance(number, str) or not 0 <= number < channels]
        if wrong:
            raise ValueError(
                f"DATA.channels_from names {wrong[0]}, and the images packed in {folder} have the channels 0 to "
                f"{channels - 1}, without names"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._keys), (self.split, self.settings)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Stored:
        content_N, size = self._files.content(int(self._rows[index]))
        if self.header.store == "jpeg":
            return decode(content_N.numpy().tobytes(), self.settings.channels, self.say, self.settings.selection)
        pixels_HWC = self._pixels(content_N, size)
        if not self.header.pictures:
            return pick(pixels_HWC.permute(2, 0, 1), self.settings.selection.numbers)
        picture = Image.fromarray((pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).numpy())
        return pick(picture, self.settings.selection.numbers)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        content_N, size = self._files.content(int(self._rows[index]))
        if self.header.store == "jpeg":
            return decode_reduced(
                content_N.numpy().tobytes(), self.settings.channels, need_of, self.say, self.settings.selection
            )
        return pick(self._pixels(content_N, size).permute(2, 0, 1), self.settings.selection.numbers), size

    def prefetch(self, indices: Sequence[int]) -> None:
        if len(self._rows) and self._files.remote is not None:
            rows = self._files.index[self._rows[list(indices)]]
            self._files.remote.prefetch([Request(0, int(row["offset"]), int(row["size"])) for row in rows])

    def describe(self, index: int) -> str:
        name = self._files.name(int(self._rows[index]))
        return printable_name(os.path.normpath(os.path.join(self.header.root, name)) if self.header.root else name)

    def label_origin(self) -> str:
        return f"the labels in {HEADER} of DATA.path {printable_name(self.settings.path)}"

    def _pixels(self, content_N: Tensor, size: tuple[int, int]) -> Tensor:
        """(H, W, C) in the stored type, a view of the file."""
        pixels_N = content_N.view(DTYPES[self.header.dtype])
        if len(pixels_N) != size[0] * size[1] * self.header.channels:
            raise BrokenImage(f"{len(content_N)} bytes for {size[0]} x {size[1]} pixels")
        return pixels_N.view(*size, self.header.channels)
