"""Predictions: every image is read once or named as broken, and the files hold what was predicted."""

import csv
import json
from pathlib import Path

import numpy as np

from mim.data.settings import AugmentSettings
from mim.data.transforms import CentreCrop
from mim.evaluation.predictions import ClassPredictions, write_csv, write_json_lines

CROP = CentreCrop(AugmentSettings(), (32, 32))
CLASSES = ("cat", "dog, wild", "owl")
PREDICTIONS = ClassPredictions(
    names=["a.png", "broken.png", 'c "1",\u00e9.png'],
    classes=CLASSES,
    rows_M=np.array([0, 2]),
    probabilities_MK=np.array([[0.25, 0.5, 0.25], [1e-9, 0.125, 0.875]], np.float32),
    broken={"broken.png": "it is torn"},
)


def test_csv_has_a_row_for_each_image_and_empty_cells_for_a_broken_one(tmp_path: Path) -> None:
    write_csv(PREDICTIONS, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", "probability", "cat", "dog, wild", "owl"]
    assert rows == [
        ["a.png", "dog, wild", "0.5", "0.25", "0.5", "0.25"],
        ["broken.png", "", "", "", "", ""],
        ['c "1",\u00e9.png', "owl", "0.875", "1e-09", "0.125", "0.875"],
    ]


def test_json_lines_have_the_same_and_the_reason_of_a_broken_image(tmp_path: Path) -> None:
    write_json_lines(PREDICTIONS, tmp_path / "p.jsonl")
    first, broken, last = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
    assert first["path"] == "a.png"
    assert (first["class"], first["probability"]) == ("dog, wild", 0.5)
    assert broken == {"path": "broken.png", "error": "it is torn"}
    assert last["probabilities"] == {"cat": 1e-9, "dog, wild": 0.125, "owl": 0.875}


def test_predictions_count_images_by_class() -> None:
    assert PREDICTIONS.counts() == {"dog, wild": 1, "owl": 1}
