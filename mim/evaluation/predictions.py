"""Predictions: class probabilities of images that need no labels, and the files that they are written to.

Shapes: N images, M readable ones, K classes.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mim.io.files import to_json, write_atomically


@dataclass(frozen=True, slots=True)
class ClassPredictions:
    """What a classifier says of each image."""

    names: Sequence[str]  # of all N images
    classes: tuple[str, ...]
    rows_M: np.ndarray  # positions of the readable images, rising
    probabilities_MK: np.ndarray
    broken: Mapping[str, str]  # why an image cannot be read, by name

    def counts(self) -> dict[str, int]:
        """Images by predicted class, for each class that is predicted."""
        counts = np.bincount(self.probabilities_MK.argmax(axis=1), minlength=len(self.classes)).tolist()
        return {name: count for name, count in zip(self.classes, counts, strict=True) if count}

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | None, str]]:
        """Each image in order: its name, its probabilities (K,) or None, and why it cannot be read."""
        position_of = {row: position for position, row in enumerate(self.rows_M.tolist())}
        for row, name in enumerate(self.names):
            position = position_of.get(row)
            yield name, None if position is None else self.probabilities_MK[position], self.broken.get(name, "")


def write_csv(predictions: ClassPredictions, path: Path) -> None:
    """A row for each image: path, class, probability, and the probability of each class; empty for a broken image."""

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow(["path", "class", "probability", *predictions.classes])
        rows.writerows(_csv_row(name, each_K, predictions.classes) for name, each_K, _ in predictions)
        text.detach()

    write_atomically(path, fill)


def _csv_row(name: str, each_K: np.ndarray | None, classes: tuple[str, ...]) -> list[str]:
    if each_K is None:
        return [name] + [""] * (2 + len(classes))
    best = int(each_K.argmax())
    return [name, classes[best], *(f"{value:.7g}" for value in (each_K[best], *each_K))]


def write_json_lines(predictions: ClassPredictions, path: Path) -> None:
    """An object for each image: path, class, probability, probabilities by class; of a broken one path and error."""

    def lines() -> Iterable[bytes]:
        for name, each_K, reason in predictions:
            content: dict[str, Any] = {"path": name, "error": reason}
            if each_K is not None:
                best, values = int(each_K.argmax()), [float(f"{value:.7g}") for value in each_K]
                content = {"path": name, "class": predictions.classes[best], "probability": values[best]}
                content["probabilities"] = dict(zip(predictions.classes, values, strict=True))
            yield to_json(content).encode() + b"\n"

    write_atomically(path, lambda file: file.writelines(lines()))


WRITERS = {".csv": write_csv, ".jsonl": write_json_lines}  # by the ending of the file
