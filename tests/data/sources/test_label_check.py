"""Labels that are no classes: measurements, identities, several labels in one. Codes and names with commas are."""

from pathlib import Path

import numpy as np
import pytest
from small_data import digit

from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Stored
from mim.data.sources.folder import Folder
from mim.data.sources.label_check import label_problem
from mim.data.sources.subset import Subset

FLOAT, SINGLE = "they are numbers with decimals", "of them have one image each"
SEVERAL, SPARSE = "labels have several parts", "they are numbers up to"


@pytest.fixture
def splits_of(tmp_path: Path):
    """Makes the two splits of a list file with these labels; all held-out images have the first label."""
    digit().save(tmp_path / "0.png")

    def write(labels: list[str]) -> tuple[Folder, Folder]:
        lines = [f"{number}.png\t{label}" for number, label in enumerate(labels)]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        (tmp_path / "val.txt").write_text(f"0.png\t{labels[0]}")
        settings = DataSettings(path=str(tmp_path / "list.txt"), channels=1)
        keys = {"val_path": str(tmp_path / "val.txt")}
        return Folder("train", settings, **keys), Folder("val", settings, **keys)

    return write


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([f"{number / 7:.4f}" for number in range(30)], FLOAT),
        (["0.5", "1.0", "1.5"] * 20, FLOAT),  # a dose a folder is still a number
        (["1e-3", "-2.5", "7"] * 5, FLOAT),
        ([*(f"{number / 7:.4f}" for number in range(30)), "n/a"], FLOAT),
        (["1.0", "2.0", "3.0"] * 20, ""),  # codes that a table wrote as floats
        ([str(number % 7) for number in range(60)], ""),
        ([str(number) for number in range(60)], SINGLE),
        ([str(number) for number in range(60)] + [str(number) for number in range(20)], SINGLE),
        ([f"person {number}" for number in range(60)], SINGLE),
        ([f"person {number}" for number in range(60)] * 2, ""),
        ([f"person {number}" for number in range(60)] + [f"person {number}" for number in range(20)], ""),
        (list("abcdefgh"), ""),  # a handful
        (["cat", "dog", "cat,dog"] * 5, SEVERAL),
        (["cat", "dog", "cat, dog"] * 5, SEVERAL),
        (['["cat"]', '["dog"]', '["cat","dog"]'] * 5, SEVERAL),
        (["['cat']", "['dog']", "['cat', 'dog']"] * 5, SEVERAL),
        (["crane (bird)", "crane (machine)", "[none]"] * 5, ""),
        (["Edema|Mass", "Mass", "Edema|Nodule", "Nodule"] * 5, SEVERAL),
        (["0,73", "0,12", "0,5"] * 5, SEVERAL),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "missile", "projectile, missile"] * 5, ""),
        (["Doe, Jane", "Doe, John", "Roe, Richard"] * 5, ""),
        (["v1.2.3", "v1.2.4"] * 5, ""),
        (["nan", "inf", "none"] * 5, ""),
    ],
)
def test_label_problem_names_measurements_identities_and_lists(splits_of, labels: list[str], problem: str) -> None:
    text = label_problem(*splits_of(labels))
    assert (problem in text) if problem else text == ""


def test_label_problem_names_the_file_the_column_examples_and_the_way_out(splits_of, tmp_path: Path) -> None:
    text = label_problem(*splits_of(["3", "2", *(f"{number / 7:.4f}" for number in range(1, 7))] * 2))
    assert text.startswith(f"the labels in the second column of DATA.path {tmp_path}/list.txt are no classes: ")
    assert f"'0.1429' of {tmp_path}/2.png" in text
    assert "16 images have 8 different labels" in text  # the held-out one too
    assert "LABELS.kind number" in text


def test_label_problem_counts_the_held_out_images_of_a_class_with_one_training_image(tmp_path: Path) -> None:
    """labelled.txt of LABELS.per_class 1 is a training list, beside the held-out images of the data set."""
    names = [f"class {number:02d}" for number in range(20)]
    for split, count in (("train", 1), ("val", 2)):
        for name in names:
            for number in range(count):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                digit().save(tmp_path / split / name / f"{number}.png")
    settings = DataSettings(path=str(tmp_path), channels=1)
    train, val = Folder("train", settings), Folder("val", settings)
    assert label_problem(train, val) == ""
    assert SINGLE in label_problem(train, Subset(val, []))


def test_label_problem_refuses_numbers_that_need_too_many_outputs() -> None:
    class Numbered(Source):
        def __init__(self, labels: list[int]):
            self.labels, self.classes, self.split = np.array(labels), (), "train"

        def __len__(self) -> int:
            return len(self.labels)

        def label_origin(self) -> str:
            return "the labels"

        def read(self, index: int) -> Stored:
            raise NotImplementedError

        def describe(self, index: int) -> str:
            return f"image {index}"

    nothing = Numbered([])
    assert f"{SPARSE} 1,000,000,000" in label_problem(Numbered([0, 0, 10**9, 10**9]), nothing)
    assert label_problem(Numbered([1, 2, 10, 10, 2, 1]), nothing) == ""
    assert label_problem(Numbered(list(range(5000)) * 2), nothing) == ""
    assert label_problem(nothing, nothing) == ""
