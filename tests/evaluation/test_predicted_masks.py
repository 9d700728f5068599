"""Predicted masks: pixels of the crop come back to where they were cut, and no picture replaces another."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim.data.settings import AugmentSettings, DataSettings
from mim.data.sources.files import Files
from mim.data.transforms import CentreCrop
from mim.evaluation.predicted_masks import at_stored_size, check_folder, write_masks
from mim.evaluation.predictions import ImagePrediction, PredictionTable
from mim.structures import LabelSpec


@pytest.mark.parametrize("stored", [(64, 64), (32, 48), (100, 40), (16, 16), (33, 57)], ids=str)
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_each_stored_pixel_takes_the_class_that_the_crop_has_there(stored: tuple[int, int], share: float) -> None:
    """A crop of a mask, by the places that ImageDataset takes, comes back as the mask wherever it was sampled."""
    crop = CentreCrop(AugmentSettings(), (32, 32), share)
    row_H, column_W = (each.numpy() for each in crop.cropped_places(stored))
    to_row, to_column = (each.numpy() for each in crop.places(stored))
    upscaled = min(stored) <= 32 * share
    for there, back, count in ((row_H, to_row, stored[0]), (column_W, to_column, stored[1])):
        assert len(there) == count
        inside = np.flatnonzero(there >= 0)
        np.testing.assert_array_equal(inside, np.arange(inside[0], inside[-1] + 1))
        assert (np.diff(there[inside]) >= 0).all()
        if upscaled:  # a stored pixel takes one of the crop's pixels that were taken from it
            np.testing.assert_array_equal(back[there[inside]], inside)
        else:  # a pixel of the crop goes back to the stored pixel that it was taken from, give or take rounding
            assert abs(there[back] - np.arange(32)).max() <= 1
        assert len(inside) == pytest.approx(min(stored) * 32 / int(32 / share), abs=1)  # the crop is a square


def write_pictures(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(len(sizes))]
    for path, (height, width) in zip(paths, sizes, strict=True):
        Image.fromarray(np.zeros((height, width), np.uint8)).save(path)
    return paths


def test_masks_have_the_size_of_the_image_and_no_class_outside_of_the_crop(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, (4, 8), (2, 2))
    source = Files(paths, DataSettings(channels=1))
    classes_hw = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]], dtype=np.int32)
    answers = [ImagePrediction(str(path), classes_hw) for path in paths]
    wide, small = at_stored_size(answers, source, CentreCrop(AugmentSettings(), (4, 4)))
    assert wide.values is not None
    np.testing.assert_array_equal(wide.values[:, 2:6], classes_hw)
    assert (wide.values[:, [0, 1, 6, 7]] == -1).all()
    np.testing.assert_array_equal(small.values, [[0, 1], [2, 0]])


def test_masks_are_pictures_of_classes_with_a_table_beside_them(tmp_path: Path) -> None:
    table = PredictionTable.of(LabelSpec("mask", ("paper", "ink")))
    predictions = [
        ImagePrediction("one/a.jpg", np.array([[0, 1, -1], [1, 1, -1]])),
        ImagePrediction("two/A.png", np.array([[0, 0]])),
        ImagePrediction("torn.png", None, "it is torn"),
    ]
    write_masks(table.counted(predictions), table, tmp_path / "masks")
    with (tmp_path / "masks" / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "mask", "paper", "ink"],
        ["one/a.jpg", "a.png", "0.25", "0.75"],
        ["two/A.png", "A_2.png", "1", "0"],
        ["torn.png", "", "", ""],
    ]
    first, second = (np.asarray(Image.open(tmp_path / "masks" / name)) for name in ("a.png", "A_2.png"))
    np.testing.assert_array_equal(first, [[0, 1, 255], [1, 1, 255]])
    np.testing.assert_array_equal(second, [[0, 0]])
    assert (table.images, table.summary()) == (2, {"share of paper": 0.625, "share of ink": 0.375})


def test_masks_of_many_classes_have_16_bits(tmp_path: Path) -> None:
    table = PredictionTable.of(LabelSpec("mask", tuple(map(str, range(300)))))
    write_masks([ImagePrediction("a.png", np.array([[0, 299, -1]]))], table, tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), [[0, 299, 65535]])


def test_masks_never_lie_in_the_folder_of_their_images(tmp_path: Path) -> None:
    paths = [str(path) for path in write_pictures(tmp_path / "images", (4, 4))]
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for folder in (tmp_path / "images", tmp_path / "link"):
        with pytest.raises(ValueError, match="masks could replace them"):
            check_folder(folder, paths)
    check_folder(tmp_path / "masks", paths)
