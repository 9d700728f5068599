"""HuggingFace: data sets of the package datasets: saved on disk, from local files, or from the hub."""

from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.images import BrokenImage
from mim.data.settings import DataSettings
from mim.data.sources.base import Split
from mim.data.sources.encoded import EncodedSource
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.once import once
from mim.registry import one_of

VAL_SPLITS = ("validation", "val", "valid", "test")
SAVED = ("dataset_dict.json", "state.json")


class HuggingFace(EncodedSource, name="huggingface"):
    """Images from the encoded bytes in a column, with labels from another column.

    DATA.path is a folder that `save_to_disk` wrote, or what `datasets.load_dataset` takes: a folder of parquet files or
    of images, or a name on the hub.

    Args:
        image_column: an `Image` column, or a column of encoded bytes.
        label_column: a `ClassLabel` column, or a column of numbers from 0; empty for no labels.
        train_split: the split of the training images.
        val_split: the split of the held-out images; `auto` takes the first of validation, val, valid and test.
        val_share: share of the training images that is held out where there is no held-out split, from 0 to below 1. A
            hash of the row decides.
        config: the configuration, of a data set with several; empty for its default.
        revision: a branch, tag or commit on the hub; empty for the newest.

    Raises ValueError where the package is missing, the data set cannot be loaded, or has no such split or column.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        image_column: str = "image",
        label_column: str = "label",
        train_split: str = "train",
        val_split: str = "auto",
        val_share: float = 0.05,
        config: str = "",
        revision: str = "",
    ):
        super().__init__(split, settings)
        check_share(val_share)
        splits = once((self.name, settings.path, config, revision), lambda: _load(settings.path, config, revision))
        train = _split(splits, "DATA.train_split", train_split)
        auto = next((name for name in VAL_SPLITS if name in splits and name != train_split), None)
        val = auto if val_split == "auto" else _split(splits, "DATA.val_split", val_split)
        self.split_name = val if split == "val" and val else train
        data = splits[self.split_name]
        self._rows = np.arange(len(data))
        if not val:
            self._rows = by_share(hashes(str(row).encode() for row in self._rows), val_share, split)
            self.held_out_share = val_share
        self._images = _images(data, image_column)
        self._column, self._label_column = image_column, label_column
        if label_column:
            self._set_labels(data, label_column)

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self, index: int) -> str:
        return f"{self.settings.path} {self.split_name} row {self._rows[index]}"

    def label_origin(self) -> str:
        return f"the labels of DATA.label_column {self._label_column}"

    def _content(self, index: int) -> Path | bytes:
        try:
            value = self._images[int(self._rows[index])][self._column]
        except (OSError, ValueError) as error:
            raise BrokenImage(f"{type(error).__name__}: {error}") from error
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else value["path"] and Path(value["path"])
        if not value:
            raise BrokenImage("the row holds no image")
        return value

    def _set_labels(self, data: Any, column: str) -> None:
        feature = data.features.get(column)
        if feature is None:
            names = one_of(column, data.column_names)
            raise ValueError(
                f"DATA.label_column {column} is no column of {self.settings.path}: {names}, or '' for no labels"
            )
        classes = getattr(feature, "names", None)
        if classes is None and not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
            raise ValueError(
                f"DATA.label_column {column} holds {feature}: a ClassLabel or whole numbers are read; "
                f"data.class_encode_column({column!r}) makes one, and '' gives no labels"
            )
        values = data.select_columns([column]).with_format("arrow")[:].column(column).to_numpy()[self._rows]
        if len(values) and np.issubdtype(values.dtype, np.integer) and values.min() >= 0:  # nulls are read as floats
            self.labels, self.classes = values.astype(np.int64), tuple(classes or ())


def _load(path: str, config: str, revision: str) -> Any:
    """All splits by name."""
    if not path:
        raise ValueError("DATA.path is empty: name a folder that save_to_disk wrote, or a data set on the hub")
    try:
        import datasets  # only this source needs the package
    except ImportError as error:
        raise ValueError(f"DATA.name huggingface needs the package datasets ({error}): pip install datasets") from error
    try:
        if any((Path(path) / file).is_file() for file in SAVED):
            data = datasets.load_from_disk(path)
        else:
            data = datasets.load_dataset(path, config or None, revision=revision or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"DATA.path {path} cannot be loaded by the package datasets: {error}") from error
    return data if isinstance(data, dict) else {"train": data}


def _split(splits: Any, key: str, name: str) -> str:
    if name not in splits:
        raise ValueError(f"{key} {name} is no split: {one_of(name, splits)}")
    return name


def _images(data: Any, column: str) -> Any:
    """The image column, with images that are not decoded."""
    import datasets

    feature = data.features.get(column)
    if feature is None:
        raise ValueError(f"DATA.image_column {column} is no column: {one_of(column, data.column_names)}")
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise ValueError(f"DATA.image_column {column} holds {feature}: an Image column or encoded bytes are read")
    return data.select_columns([column])
