"""Predictions: every image is read once or named as broken, and the files hold what was predicted."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import digit, write_digits

from mim.data.settings import AugmentSettings, DataSettings
from mim.data.sources.files import Files
from mim.data.transforms import CentreCrop
from mim.evaluation.predictions import ClassPredictions, ReadImages, read_each, write_csv, write_json_lines

CROP = CentreCrop(AugmentSettings(), (32, 32))
CLASSES = ("cat", "dog, wild", "owl")
PREDICTIONS = ClassPredictions(
    names=["a.png", "broken.png", 'c "1",\u00e9.png'],
    classes=CLASSES,
    rows_M=np.array([0, 2]),
    probabilities_MK=np.array([[0.25, 0.5, 0.25], [1e-9, 0.125, 0.875]], np.float32),
    broken={1: "it is torn"},
)


def read(folder: Path, batch_size: int = 4, workers: int = 0, rank: int = 0, size: int = 1) -> list[ReadImages]:
    return list(read_each(Files([folder], DataSettings(channels=1)), CROP, batch_size, workers, rank, size))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten digits; the third is torn, the fifth an array of floats, the sixth one with a NaN."""
    paths = write_digits(tmp_path, 10)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    for number, corner in ((4, 0.5), (5, np.nan)):
        array_HW = np.asarray(digit(number)).astype(np.float32) / 255
        array_HW[0, 0] = corner
        paths[number].unlink()
        np.save(paths[number].with_suffix(".npy"), array_HW)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_read_each_gives_each_image_once_and_names_the_broken_ones(photos: Path, workers: int) -> None:
    parts = read(photos, workers=workers)
    assert [row for part in parts for row in part.rows] == [0, 1, 3, 4, 6, 7, 8, 9]
    broken = {row: reason for part in parts for row, reason in part.broken.items()}
    assert list(broken) == [2, 5]
    assert "not finite" in broken[5]
    assert np.array_equal(parts[2].images_BCHW[1, 0], np.asarray(digit(9)))
    scaled_BCHW = parts[1].images_BCHW  # pictures beside an array
    assert scaled_BCHW.dtype == torch.float32
    assert np.array_equal(scaled_BCHW[1, 0], np.asarray(digit(6)).astype(np.float32) / 255)


def test_read_each_of_a_batch_without_a_readable_image_has_no_tensor(photos: Path) -> None:
    assert [part.images_BCHW is None for part in read(photos, batch_size=1)].count(True) == 2


def test_read_each_shares_the_images_among_ranks(photos: Path) -> None:
    rows = [[row for part in read(photos, rank=rank, size=3) for row in part.rows] for rank in range(3)]
    assert rows == [[0, 3, 6, 9], [1, 4, 7], [8]]


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
