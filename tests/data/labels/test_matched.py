"""Matched labels: names decide, whatever the order, for every kind of labels."""

from pathlib import Path

import numpy as np
import pytest
from label_files import classes_of, join, write_images, write_mask, write_photographs, write_table

from mim.data.labels.matched import match_labels
from mim.data.sources.base import Source
from mim.structures import LabelSpec

OTHERS = "the data that run was trained on"


def numbers(folder: Path, header: str = "path,x,y,z", **keys: object) -> Source:
    paths = write_images(folder)
    columns = header.count(",")
    rows = [f"{path.name}," + ",".join(str(10 * c + n + 0.5) for c in range(columns)) for n, path in enumerate(paths)]
    table = write_table(folder / "labels", header, rows)
    return join(folder, file=table, columns=tuple(header.split(",")[1:]), kind="number", **keys)[0]


def test_columns_of_numbers_are_found_by_name_and_missing_ones_are_unknown(tmp_path: Path) -> None:
    source = numbers(tmp_path)
    matched, note = match_labels(source, LabelSpec("number", ("z", "gone", "x")), OTHERS)
    np.testing.assert_array_equal(matched.labels[:, [0, 2]], source.labels[:, [2, 0]])
    assert np.isnan(matched.labels[:, 1]).all()
    assert matched.label_spec == LabelSpec("number", ("z", "gone", "x"))
    assert "without column gone" in note
    assert "column y is left out" in note
    assert match_labels(source, LabelSpec("number", ("x", "y", "z")), OTHERS) == (source, "")
    with pytest.raises(ValueError, match="it knows height"):
        match_labels(source, LabelSpec("number", ("height",)), OTHERS)


def test_several_classes_are_found_by_name_and_an_unknown_one_is_refused_where_an_image_has_it(tmp_path: Path) -> None:
    paths = write_images(tmp_path)
    rows = [f"{path.name},{n % 2},0,{int(n > 3)}" for n, path in enumerate(paths)]
    table = write_table(tmp_path / "labels", "path,odd,never,large", rows)
    source = join(tmp_path, file=table, columns=("odd", "never", "large"), kind="classes")[0]
    matched, _ = match_labels(source, LabelSpec("classes", ("large", "odd")), OTHERS)  # no image has `never`
    np.testing.assert_array_equal(matched.labels, source.labels[:, [2, 0]])
    with pytest.raises(ValueError, match="name others than the data that run was trained on: large, and it knows odd"):
        match_labels(source, LabelSpec("classes", ("odd",)), OTHERS)


def test_masks_are_numbered_as_the_readout_has_them_and_ignored_pixels_stay_so(tmp_path: Path) -> None:
    paths = write_photographs(tmp_path / "images")
    for number, path in enumerate(paths):
        numbers_HW = classes_of(number)
        numbers_HW[:4] = 255
        write_mask(tmp_path / "masks" / path.name, numbers_HW)
    names = ("sky", "leaf", "petal")
    source = join(tmp_path / "images", 0.0, 3, masks=tmp_path / "masks", names=names, ignore=255)[0]
    matched, note = match_labels(source, LabelSpec("mask", ("petal", "soil", "sky", "leaf")), OTHERS)
    for own, theirs in ((-1, -1), (0, 2), (1, 3), (2, 0)):
        assert (source.mask(1) == own).any()
        np.testing.assert_array_equal(source.mask(1) == own, matched.mask(1) == theirs)
    assert note.startswith("without class soil")
    with pytest.raises(ValueError, match="petal, and it knows sky, leaf"):
        match_labels(source, LabelSpec("mask", ("sky", "leaf")), OTHERS)


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"are of kind number, and those of {OTHERS} of kind class"):
        match_labels(numbers(tmp_path), LabelSpec("class", ("x", "y", "z")), OTHERS)
