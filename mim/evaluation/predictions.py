"""Predictions: what a readout says of images that need no labels, and the files that it is written to.

Images pass one at a time, so a prediction of millions of images needs the memory of one batch. Shapes: H W pixels, K
classes or columns of numbers.
"""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mim.io.files import to_json, write_atomically
from mim.structures import LabelKind, LabelSpec

SEPARATOR = "|"  # of several classes in one cell, as LABELS.separator has it
THRESHOLD = 0.5  # of a probability, above which one of several classes is answered


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What a readout says of one image."""

    path: str
    values: np.ndarray | None  # (K,) probabilities or numbers, or (H, W) classes; None where the image cannot be read
    reason: str = ""  # why it cannot be read
    mask: str = ""  # the name of the picture of its classes


class PredictionTable(ABC):
    """A row for each image, of one kind of labels, and a summary of all rows. `of` makes the one of a LabelSpec."""

    kind: ClassVar[LabelKind]
    own_columns: ClassVar[tuple[str, ...]]  # ahead of one column for each name
    what: ClassVar[str]  # what a column of a name holds

    def __init__(self, names: Sequence[str]):
        self.names, self.images = tuple(names), 0

    @staticmethod
    def of(spec: LabelSpec) -> "PredictionTable":
        return next(table(spec.names) for table in PredictionTable.__subclasses__() if table.kind == spec.kind)

    def counted(self, predictions: Iterable[ImagePrediction]) -> Iterator[ImagePrediction]:
        """The predictions, each counted as it passes; images that cannot be read do not count."""
        for prediction in predictions:
            if prediction.values is not None:
                self.images += 1
                self.count(prediction.values)
            yield prediction

    def columns(self) -> list[str]:
        """Each name is a column, called like it; where one is called like another column, all are `what of NAME`."""
        if set(self.own_columns).isdisjoint(self.names):
            return [*self.own_columns, *self.names]
        return [*self.own_columns, *(f"{self.what} of {name}" for name in self.names)]

    @abstractmethod
    def count(self, values: np.ndarray) -> None:
        """Adds an image to the summary."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What was predicted, by name."""

    @abstractmethod
    def cells(self, values: np.ndarray, mask: str) -> list[Any]:
        """The cells of an image behind its path; floats are rounded by the writer."""

    @abstractmethod
    def content(self, values: np.ndarray) -> dict[str, Any]:
        """The same as an object, by name."""


class OneClassTable(PredictionTable):
    """The most likely class and its probability, then the probability of each class."""

    kind, own_columns, what = "class", ("path", "class", "probability"), "probability"

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self._counts = [0] * len(self.names)

    def count(self, values: np.ndarray) -> None:
        self._counts[int(values.argmax())] += 1

    def summary(self) -> dict[str, Any]:
        return {name: count for name, count in zip(self.names, self._counts, strict=True) if count}

    def cells(self, values: np.ndarray, mask: str) -> list[Any]:
        best = int(values.argmax())
        return [self.names[best], values[best], *values]

    def content(self, values: np.ndarray) -> dict[str, Any]:
        best = int(values.argmax())
        return {
            "class": self.names[best],
            "probability": _rounded(values[best]),
            "probabilities": _by_name(self.names, values),
        }


class SeveralClassesTable(PredictionTable):
    """The classes with a probability above 0.5, then the probability of each class."""

    kind, own_columns, what = "classes", ("path", "classes"), "probability"

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self._counts_K = np.zeros(len(self.names), dtype=np.int64)

    def count(self, values: np.ndarray) -> None:
        self._counts_K += values > THRESHOLD

    def summary(self) -> dict[str, Any]:
        return {name: count for name, count in zip(self.names, self._counts_K.tolist(), strict=True) if count}

    def cells(self, values: np.ndarray, mask: str) -> list[Any]:
        return [SEPARATOR.join(self._answered(values)), *values]

    def content(self, values: np.ndarray) -> dict[str, Any]:
        return {"classes": self._answered(values), "probabilities": _by_name(self.names, values)}

    def _answered(self, values: np.ndarray) -> list[str]:
        return [name for name, value in zip(self.names, values, strict=True) if value > THRESHOLD]


class NumberTable(PredictionTable):
    """Each number, in the unit of the labels. The summary has the mean of each column."""

    kind, own_columns, what = "number", ("path",), "number"

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self._sums_K = np.zeros(len(self.names))

    def count(self, values: np.ndarray) -> None:
        self._sums_K += values

    def summary(self) -> dict[str, Any]:
        return {f"mean of {name}": value for name, value in _by_name(self.names, self._sums_K / self.images).items()}

    def cells(self, values: np.ndarray, mask: str) -> list[Any]:
        return list(values)

    def content(self, values: np.ndarray) -> dict[str, Any]:
        return {"numbers": _by_name(self.names, values)}


class MaskTable(PredictionTable):
    """The picture of the classes of an image, then the share of its pixels of each class.

    Pixels without an answer have the class -1, and do not count.
    """

    kind, own_columns, what = "mask", ("path", "mask"), "share"

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self._sums_K = np.zeros(len(self.names))

    def count(self, values: np.ndarray) -> None:
        self._sums_K += self._shares(values)

    def summary(self) -> dict[str, Any]:
        return {f"share of {name}": value for name, value in _by_name(self.names, self._sums_K / self.images).items()}

    def cells(self, values: np.ndarray, mask: str) -> list[Any]:
        return [mask, *self._shares(values)]

    def content(self, values: np.ndarray) -> dict[str, Any]:
        return {"shares": _by_name(self.names, self._shares(values))}

    def _shares(self, classes_HW: np.ndarray) -> np.ndarray:
        counts_K = np.bincount(classes_HW[classes_HW >= 0].astype(np.int64), minlength=len(self.names))
        return counts_K / max(counts_K.sum(), 1)


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def _by_name(names: Sequence[str], values: Iterable[float]) -> dict[str, float]:
    return dict(zip(names, map(_rounded, values), strict=True))


def write_csv(predictions: Iterable[ImagePrediction], table: PredictionTable, path: Path) -> None:
    """A row for each image: path, then the columns of the table; empty for a broken image."""
    columns = table.columns()

    def row_of(prediction: ImagePrediction) -> list[str]:
        if prediction.values is None:
            return [prediction.path] + [""] * (len(columns) - 1)
        cells = table.cells(prediction.values, prediction.mask)
        return [prediction.path, *(cell if isinstance(cell, str) else f"{cell:.7g}" for cell in cells)]

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow(columns)
        rows.writerows(map(row_of, predictions))
        text.detach()

    write_atomically(path, fill)


def write_json_lines(predictions: Iterable[ImagePrediction], table: PredictionTable, path: Path) -> None:
    """An object for each image: its path and what the table says; of a broken one path and error."""

    def lines() -> Iterable[bytes]:
        for prediction in predictions:
            content: dict[str, Any] = {"path": prediction.path, "error": prediction.reason}
            if prediction.values is not None:
                content = {"path": prediction.path, **table.content(prediction.values)}
            yield to_json(content).encode() + b"\n"

    write_atomically(path, lambda file: file.writelines(lines()))


WRITERS = {".csv": write_csv, ".jsonl": write_json_lines}  # by the ending of the file
