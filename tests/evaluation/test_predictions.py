"""Predictions: every image is read once or named as broken, and the files hold what was predicted."""

import csv
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mim.data.settings import AugmentSettings
from mim.data.transforms import CentreCrop
from mim.evaluation.predictions import ImagePrediction, PredictionTable, write_csv, write_json_lines
from mim.structures import LabelKind, LabelSpec

CROP = CentreCrop(AugmentSettings(), (32, 32))
CLASSES = ("cat", "dog, wild", "owl")
PREDICTIONS = (
    ImagePrediction("a.png", np.array([0.25, 0.5, 0.25], np.float32)),
    ImagePrediction("broken.png", None, "it is torn"),
    ImagePrediction('c "1",\u00e9\n.png', np.array([1e-9, 0.125, 0.875], np.float32)),
)


def table(names: tuple[str, ...] = CLASSES, kind: LabelKind = "class") -> PredictionTable:
    return PredictionTable.of(LabelSpec(kind, names))


def test_csv_has_a_row_for_each_image_and_empty_cells_for_a_broken_one(tmp_path: Path) -> None:
    write_csv(PREDICTIONS, table(), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", "probability", "cat", "dog, wild", "owl"]
    assert rows == [
        ["a.png", "dog, wild", "0.5", "0.25", "0.5", "0.25"],
        ["broken.png", "", "", "", "", ""],
        ['c "1",\u00e9\n.png', "owl", "0.875", "1e-09", "0.125", "0.875"],
    ]


def test_json_lines_have_the_same_and_the_reason_of_a_broken_image(tmp_path: Path) -> None:
    write_json_lines(PREDICTIONS, table(), tmp_path / "p.jsonl")
    first, broken, last = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
    assert first["path"] == "a.png"
    assert (first["class"], first["probability"]) == ("dog, wild", 0.5)
    assert broken == {"path": "broken.png", "error": "it is torn"}
    assert last["probabilities"] == {"cat": 1e-9, "dog, wild": 0.125, "owl": 0.875}


@pytest.mark.parametrize("name", ["path", "class", "probability"])
def test_csv_has_no_column_twice_where_a_class_is_called_like_another_column(tmp_path: Path, name: str) -> None:
    write_csv(PREDICTIONS, table(("cat", name, "owl")), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["path"], first["class"], first["probability"]) == ("a.png", name, "0.5")
    assert [first[f"probability of {each}"] for each in ("cat", name, "owl")] == ["0.25", "0.5", "0.25"]


@pytest.mark.parametrize("write", [write_csv, write_json_lines])
def test_predictions_are_written_as_they_come(tmp_path: Path, write: Callable) -> None:
    seen, alive = 0, []

    def predictions() -> Iterator[ImagePrediction]:
        nonlocal seen
        for number in range(100):
            prediction = ImagePrediction(f"{number}.png", np.array([0.75, 0.25, 0.0], np.float32))
            alive.append(weakref.ref(prediction.values))
            seen = max(seen, sum(each() is not None for each in alive))
            yield prediction

    write(predictions(), table(), tmp_path / "p")
    assert len(alive) == 100
    assert seen <= 3


def test_predictions_count_images_by_class() -> None:
    counts = table()
    assert tuple(counts.counted(PREDICTIONS)) == PREDICTIONS
    assert (counts.images, counts.summary()) == (2, {"dog, wild": 1, "owl": 1})


OTHER_KINDS: tuple[tuple[LabelKind, list[str], list[str], dict, dict], ...] = (
    (
        *("classes", ["path", "classes", "odd", "large"]),
        *(["a.png", "odd|large", "0.75", "0.5000001"], {"odd": 1, "large": 1}),
        {"path": "a.png", "classes": ["odd", "large"], "probabilities": {"odd": 0.75, "large": 0.5000001}},
    ),
    (
        *("number", ["path", "odd", "large"], ["a.png", "0.75", "0.5000001"]),
        {"mean of odd": 0.5, "mean of large": 0.5},
        {"path": "a.png", "numbers": {"odd": 0.75, "large": 0.5000001}},
    ),
)


@pytest.mark.parametrize(("kind", "columns", "row", "summary", "content"), OTHER_KINDS, ids=["classes", "number"])
def test_other_kinds_have_their_own_columns_and_summary(
    tmp_path: Path, kind: LabelKind, columns: list[str], row: list[str], summary: dict, content: dict
) -> None:
    names = ("odd", "large")
    predictions = [
        ImagePrediction("a.png", np.array([0.75, 0.5000001])),
        ImagePrediction("torn.png", None, "it is torn"),
        ImagePrediction("b.png", np.array([0.25, 0.4999999])),
    ]
    counts = table(names, kind)
    write_csv(counts.counted(predictions), counts, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        header, first, torn, _ = csv.reader(file)
    assert (header, first, torn) == (columns, row, ["torn.png", *[""] * (len(columns) - 1)])
    assert (counts.images, counts.summary()) == (2, summary)
    write_json_lines(predictions, counts, tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0]) == content


def test_numbers_called_path_have_a_column_of_their_own(tmp_path: Path) -> None:
    write_csv([ImagePrediction("a.png", np.array([2.5]))], table(("path",), "number"), tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines() == ["path,number of path", "a.png,2.5"]
