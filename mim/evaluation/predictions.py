"""Predictions: class probabilities of images that need no labels, and the files that they are written to.

Images pass one at a time, so a prediction of millions of images needs the memory of one batch. Shapes: K classes.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mim.io.files import to_json, write_atomically

COLUMNS = ("path", "class", "probability")


@dataclass(frozen=True, slots=True)
class ClassPrediction:
    """What a classifier says of one image."""

    path: str
    probabilities_K: np.ndarray | None  # None where the image cannot be read
    reason: str = ""  # why it cannot be read


class PredictionCounts:
    """Counts predictions that pass through it.

    Args:
        classes: the name of each class.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes, self.images = classes, 0
        self._counts = [0] * len(classes)

    def of(self, predictions: Iterable[ClassPrediction]) -> Iterator[ClassPrediction]:
        """The predictions, each counted as it passes; images that cannot be read do not count."""
        for prediction in predictions:
            if prediction.probabilities_K is not None:
                self.images += 1
                self._counts[int(prediction.probabilities_K.argmax())] += 1
            yield prediction

    def by_class(self) -> dict[str, int]:
        """Images by predicted class, for each class that is predicted."""
        return {name: count for name, count in zip(self.classes, self._counts, strict=True) if count}


def write_csv(predictions: Iterable[ClassPrediction], classes: Sequence[str], path: Path) -> None:
    """A row for each image: path, class, probability, and the probability of each class; empty for a broken image."""

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow([*COLUMNS, *_class_columns(classes)])
        rows.writerows(_csv_row(prediction, classes) for prediction in predictions)
        text.detach()

    write_atomically(path, fill)


def _class_columns(classes: Sequence[str]) -> list[str]:
    """A column for each class, called like it; where one is called like another column, `probability of NAME`."""
    if set(COLUMNS).isdisjoint(classes):
        return list(classes)
    return [f"probability of {name}" for name in classes]


def _csv_row(prediction: ClassPrediction, classes: Sequence[str]) -> list[str]:
    each_K = prediction.probabilities_K
    if each_K is None:
        return [prediction.path] + [""] * (2 + len(classes))
    best = int(each_K.argmax())
    return [prediction.path, classes[best], *(f"{value:.7g}" for value in (each_K[best], *each_K))]


def write_json_lines(predictions: Iterable[ClassPrediction], classes: Sequence[str], path: Path) -> None:
    """An object for each image: path, class, probability, probabilities by class; of a broken one path and error."""

    def lines() -> Iterable[bytes]:
        for prediction in predictions:
            each_K = prediction.probabilities_K
            content: dict[str, Any] = {"path": prediction.path, "error": prediction.reason}
            if each_K is not None:
                best, values = int(each_K.argmax()), [float(f"{value:.7g}") for value in each_K]
                content = {"path": prediction.path, "class": classes[best], "probability": values[best]}
                content["probabilities"] = dict(zip(classes, values, strict=True))
            yield to_json(content).encode() + b"\n"

    write_atomically(path, lambda file: file.writelines(lines()))


WRITERS = {".csv": write_csv, ".jsonl": write_json_lines}  # by the ending of the file
