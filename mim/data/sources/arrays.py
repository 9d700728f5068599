"""Arrays: the images of one array in an HDF5, Zarr or NumPy file.

Shapes: N images, C channels, H W pixels; layouts name the axes of the array.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.numbers import can_be_stored, to_stored_type
from mim.data.decoding.selection import pick
from mim.data.settings import DataSettings
from mim.data.sources.array_files import SEPARATOR, ArrayFile, split_name
from mim.data.sources.base import Source, Split, Stored, unreachable
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.once import once

Layout = Literal["NCHW", "NHWC", "NHW"]


class Arrays(Source, name="arrays"):
    """The images of one array, each a row of it. DATA.path is one of these:

    - an HDF5 file (any ending; the package h5py) or the folder of a Zarr store (zarr), with the name of the array
      behind `::`, as in `plates.h5::train/images`; without it, the only array of 3 or 4 axes;
    - a `.npy` file, which is mapped into memory and never read as a whole;
    - a `.npz` file, of which the array is read into memory, as in `medical.npz::train_images`.

    Pixels are uint8, uint16 or floats; other whole numbers and truth values become float32. A chunk that is missing in
    a Zarr store has its fill value, as Zarr defines it: a lost file of a chunk is an image of zeros.

    Args:
        array: the name of the array, in place of that behind `::`.
        layout: the axes of the array; `auto` takes the axis of DATA.channels, if only one can be it.
        labels_array: the array of the labels, one an image: whole numbers from 0, or texts. It is a name in the file,
            or another file, as `labels.npy` and `labels.h5::classes`. Empty for no labels.
        val_path: the held-out images, as DATA.path; DATA.array counts where there is no `::`.
        val_labels_array: their labels; empty for the name that labels_array has.
        val_share: share of the images that is held out where val_path is empty, from 0 to below 1. A hash of the row
            decides.

    Raises ValueError where there is no such file or array, a package is missing, or array and keys do not fit.
    """

    chooses_channels = True

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        array: str = "",
        layout: Literal["auto", "NCHW", "NHWC", "NHW"] = "auto",
        labels_array: str = "",
        val_path: str = "",
        val_labels_array: str = "",
        val_share: float = 0.05,
    ):
        super().__init__(split, settings)
        check_share(val_share)
        uses_val_path = split == "val" and bool(val_path)
        self._key, value = ("DATA.val_path", val_path) if uses_val_path else ("DATA.path", settings.path)
        self._labels_key, labels = "DATA.labels_array", labels_array
        if uses_val_path and val_labels_array:
            self._labels_key, labels = "DATA.val_labels_array", val_labels_array
        self.file = _file(value, array, self._key)
        self.layout = _layout(self.file, layout, settings)
        self._rows = np.arange(len(self.file))
        if not val_path:
            self._rows = by_share(hashes(str(row).encode() for row in self._rows), val_share, split)
            self.held_out_share = val_share
        if labels:
            self._set_labels(labels)
        chunk = self.file.chunk
        if split == "train" and chunk and chunk[0] > 1:
            note = f"its chunks hold {chunk[0]:,} images, and reading one image decodes a chunk: (1, ...) is faster"
            self.say([note], self.file.name())

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Stored:
        pixels = torch.from_numpy(np.ascontiguousarray(to_stored_type(self.file.row(int(self._rows[index])))))
        return pick(self._channels_first(pixels), self.settings.selection.numbers)

    def describe(self, index: int) -> str:
        return f"{self.file.name()} row {self._rows[index]}"

    def label_origin(self) -> str:
        return f"the labels of {self._labels_key}"

    def missing(self) -> str:
        reason = unreachable(self.file.path)
        return reason and f"{self._key} {self.file.name()}: {reason}"

    def _channels_first(self, pixels: Tensor) -> Tensor:
        if self.layout == "NHW":
            return pixels[None]
        return pixels if self.layout == "NCHW" else pixels.permute(2, 0, 1).contiguous()

    def _set_labels(self, value: str) -> None:
        """Labels and classes, from a name in the file of the images or from another file."""
        path, _ = split_name(value)
        if SEPARATOR in value or path.is_file():
            file = _file(value, "", self._labels_key)
        else:
            file = _file(f"{self.file.path}{SEPARATOR}{value}", "", self._labels_key)
        label_N, classes = _labels(file, len(self.file), self._labels_key)
        self.labels, self.classes = label_N[self._rows], classes


def _file(value: str, array: str, key: str) -> ArrayFile:
    """The array that the value of a key names. Raises ValueError where it names two, or none."""
    if not value:
        raise ValueError(f"{key} is empty: name an HDF5, .npy or .npz file, or the folder of a Zarr store")
    path, name = split_name(value)
    if name and array and name != array and key == "DATA.path":
        raise ValueError(f"{key} names the array {name}, and DATA.array {array}: leave one of them out")
    name = name or array
    return once(("arrays", path, name, key), lambda: ArrayFile(path, name, key))


def _layout(file: ArrayFile, layout: str, settings: DataSettings) -> Layout:
    """The axes of an array of images. Raises ValueError where they, or its type, do not fit the settings."""
    shape, channels = file.shape, settings.channels
    what = f"{file.name()} is an array of {file.dtype} and shape {shape}"
    if not can_be_stored(file.dtype):
        raise ValueError(f"{what}: whole numbers and floats are read")
    if len(shape) not in (3, 4) or not all(shape):
        raise ValueError(f"{what}: N images have the axes NCHW, NHWC or NHW, and none of length 0")
    chosen = settings.selection.numbers
    candidates: dict[Layout, int] = {"NHW": 1} if len(shape) == 3 else {"NCHW": shape[1], "NHWC": shape[-1]}
    if layout != "auto":
        candidates = {name: count for name, count in candidates.items() if name == layout}
    fitting = [name for name, count in candidates.items() if _fits(count, channels, chosen)]
    if len(fitting) == 1:
        return fitting[0]
    asks = f"DATA.layout is {layout}, DATA.channels {channels}"
    asks += f" and DATA.channels_from {list(chosen)}" if chosen else ""
    if len(fitting) > 1:
        raise ValueError(f"{what}, and {asks}: two axes may be the channels. Set DATA.layout NCHW or NHWC")
    way_out = "set DATA.layout to its axes" if not candidates else "set DATA.channels to its channels"
    raise ValueError(f"{what}, and {asks}: {way_out}; N images have the axes NCHW, NHWC or NHW")


def _fits(count: int, channels: int, chosen: tuple[int | str, ...]) -> bool:
    """Whether an axis of that length may be the channels."""
    if chosen:
        return all(isinstance(number, int) and 0 <= number < count for number in chosen)
    return count == channels


def _labels(file: ArrayFile, images: int, key: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each image, (N,) int64, and the names of the classes, which numbers have not."""
    what = f"{key} {file.name()} is an array of {file.dtype} and shape {file.shape}"
    if int(np.prod(file.shape)) != images or not file.shape:
        raise ValueError(
            f"{what}, and there are {images:,} images: it needs one label for each; "
            "DATA.val_labels_array names those of DATA.val_path"
        )
    try:
        label_N = file.whole().reshape(-1)
    except BrokenImage as error:
        raise ValueError(f"{key} {file.name()} cannot be read: {error}") from error
    if label_N.dtype.kind in "SUTO" and all(isinstance(label, str | bytes) for label in label_N):
        texts = [label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label) for label in label_N]
        classes, label_N = np.unique(texts, return_inverse=True)
        return label_N.astype(np.int64), tuple(map(str, classes))
    if label_N.dtype.kind not in "bui":
        raise ValueError(
            f"{what}: labels are whole numbers from 0, or texts; numbers are read from a table, LABELS.file"
        )
    if label_N.size and int(label_N.min()) < 0:
        raise ValueError(f"{what}, with a label {int(label_N.min())}: the classes have numbers from 0")
    return label_N.astype(np.int64), ()
