"""Parquet: encoded images in a column of Parquet files. Shapes: N images."""

import logging
import os
from functools import partial
from pathlib import Path

import numpy as np

from mim.data.decoding.names import encoded, printable_name
from mim.data.remote.files import find_files, open_files
from mim.data.remote.store import is_remote
from mim.data.settings import DataSettings
from mim.data.sources.base import Split, none_reachable
from mim.data.sources.encoded import EncodedSource
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.once import once
from mim.data.sources.parquet_files import ENDING, MOST_KEPT, ParquetColumn, find_parquet
from mim.registry import one_of

LOG = logging.getLogger("mim")


class Parquet(EncodedSource, name="parquet"):
    """Images of Parquet files: a value is an encoded image, as a file of it would be. DATA.path is a file, a folder of
    `.parquet` files in it and below, or a pattern such as `/data/train-*.parquet`; or the address of one of these on
    an object store. Images have the order of the files' names, then of their rows.

    Reading an image decodes the row group that holds it, so row groups should be small: about 100 images.

    Args:
        image_column: a column of binary values, or of structs with a field `bytes`, as the package datasets writes
            them.
        label_column: a column of whole numbers from 0, or of texts; empty for no labels.
        val_path: held-out images, as DATA.path.
        val_share: share of the images that is held out where val_path is empty, from 0 to below 1. A hash of the file's
            name and the row decides.
        cache_gib: GiB, from 0, of copies of files of an object store on this machine. Of a file without a copy, row
            groups are read over the network.
        cache: the folder of these copies, on a disk of this machine, for all data sets and processes; empty for
            `~/.cache/mim-toolkit/remote`.

    Raises ValueError where there are no files, one cannot be read or has no such columns, or a label is missing or one
    that no training image has.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        image_column: str = "image",
        label_column: str = "",
        val_path: str = "",
        val_share: float = 0.05,
        cache_gib: float = 64.0,
        cache: str = "",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        uses_val_path = split == "val" and bool(val_path)
        self._key, value = ("DATA.val_path", val_path) if uses_val_path else ("DATA.path", settings.path)
        opened = partial(_column, settings, image_column, cache_gib, cache)
        self._images = opened(self._key, value)
        if split == "train":
            _warn_of_large_groups(self._images)
        files = np.repeat(np.arange(len(self._images.paths)), self._images.counts)
        rows = np.concatenate([np.arange(count) for count in self._images.counts])
        self._row_N2 = np.stack([files, rows], 1)
        chosen = np.arange(len(rows))
        if not val_path:
            names = (
                encoded(f"{os.path.basename(self._images.paths[file])}/{row}") for file, row in self._row_N2.tolist()
            )
            chosen = by_share(hashes(names), val_share, split)
            self.held_out_share = val_share
        self._row_N2 = self._row_N2[chosen]
        self._label_column = label_column
        if label_column:
            training = opened("DATA.path", settings.path) if uses_val_path else self._images
            classes = _classes(*training.labels(label_column), label_column)
            self.labels = _numbers(self._images.labels(label_column)[0], classes, label_column)[chosen]
            self.classes = classes

    def __len__(self) -> int:
        return len(self._row_N2)

    def describe(self, index: int) -> str:
        file, row = self._row_N2[index].tolist()
        return f"{printable_name(self._images.paths[file])} row {row}"

    def label_origin(self) -> str:
        return f"the labels of DATA.label_column {self._label_column}"

    def missing(self) -> str:
        """Looks at some files, evenly spread. Reading an object store waits by itself."""
        if self._images.remote is not None:
            return ""
        probed, reason = none_reachable([Path(path) for path in self._images.paths])
        tried = f"{len(probed)} of {len(self._images.paths)} files were tried"
        return reason and f"{self._key} {printable_name(probed[0])}: {reason} ({tried})"

    def _content(self, index: int) -> bytes:
        return self._images.value(*self._row_N2[index].tolist())


def _column(
    settings: DataSettings, image_column: str, cache_gib: float, cache: str, key: str, value: str
) -> ParquetColumn:
    """The images of the files that the value of a key names."""

    def opened() -> ParquetColumn:
        if not is_remote(value):
            return ParquetColumn(find_parquet(key, value), image_column, key)
        store, files = find_files(key, [value], settings, ENDING, below=True)
        remote = open_files(store, files, settings, cache_gib, cache)
        return ParquetColumn([file.url for file in files], image_column, key, remote)

    return once(("parquet", value, image_column), opened)


def _warn_of_large_groups(images: ParquetColumn) -> None:
    if images.largest > MOST_KEPT:
        LOG.warning(
            "a row group of %s holds %.1f GB of images, and reading one of them decodes up to all of it: write row "
            "groups of about 100 images (row_group_size=100), or pack the images with mim-pack",
            printable_name(os.path.dirname(images.paths[0])),
            images.largest / 1e9,
        )


def _classes(values: np.ndarray, names: tuple[str, ...], column: str) -> tuple[str, ...]:
    """The names of the classes; none where labels are numbers without. Raises ValueError for other values."""
    if names or values.dtype.kind in "iu":
        return names
    other = next((value for value in values.tolist() if not isinstance(value, str)), None)
    if values.dtype != object or other is not None or None in values.tolist():
        kind = values.dtype if values.dtype != object else "rows without a text"
        raise ValueError(
            f"DATA.label_column {column} holds {kind}: whole numbers from 0 and texts are read, one for each row; '' "
            "gives no labels"
        )
    return tuple(sorted(set(values.tolist())))


def _numbers(values: np.ndarray, classes: tuple[str, ...], column: str) -> np.ndarray:
    """The class of each image, (N,) int64. Raises ValueError for one that is none of the classes."""
    if values.dtype.kind in "iu":
        if len(values) and (values.min() < 0 or (classes and values.max() >= len(classes))):
            last = f" to {len(classes) - 1}" if classes else ""
            raise ValueError(
                f"DATA.label_column {column} goes from {values.min()} to {values.max()}: classes are numbers from 0"
                f"{last}; '' gives no labels"
            )
        return values.astype(np.int64)
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = next((value for value in values.tolist() if value not in number_of), "")
    if unknown != "":
        raise ValueError(
            f"DATA.label_column {column} has the label {unknown!r}, which no training image has: "
            f"{one_of(str(unknown), classes)}"
        )
    return np.array([number_of[value] for value in values.tolist()], np.int64)
