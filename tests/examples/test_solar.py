"""examples/solar: the split into modules, and the table of a study. The package of the images is not needed."""

import csv
import json
import re
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
from processes import ROOT

from mim.data.settings import DataSettings
from mim.data.sources.base import Source

TYPES = (("mono", 60), ("poly", 300), ("mono", 180), ("poly", 360), ("mono", 714))  # how the package has them
TYPES = (*TYPES, ("poly", 530), ("mono", 72), ("poly", 180), ("mono", 48), ("poly", 180))


@pytest.fixture(scope="module")
def prepare():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "solar" / "prepare.py")))


@pytest.fixture(scope="module")
def frozen():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "solar" / "frozen.py")))


@pytest.fixture(scope="module")
def page():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "solar" / "page.py")))


@pytest.fixture
def cells(prepare, tmp_path):
    """As many cells of each type as the package has; every third has a defect of one of three levels."""
    types = [kind for kind, count in TYPES for _ in range(count)]
    return [
        prepare.Cell(
            number, tmp_path / f"cell{number:04}.png", (0, 0.33, 0.67, 1)[number % 4], kind, prepare.module_of(number)
        )
        for number, kind in enumerate(types, 1)
    ]


def test_solar_cells_of_one_module_have_one_type(cells):
    """44 pictures of modules: two have no border between them, three are like others, and 40 groups are left."""
    types = {}
    for cell in cells:
        types.setdefault(cell.module, set()).add(cell.type)
    assert len(cells) == 2624
    assert len(types) == 40
    assert all(len(each) == 1 for each in types.values())


def test_solar_modules_with_twins_are_one_group(prepare):
    numbers = (720, 721, 781, 1734, 1735, 1784, 1785, 2276, 2277, 2336, 2337)
    assert [prepare.module_of(number) for number in numbers] == [
        *(661, 601, 781, 1675, 1735, 1735, 1735, 2217, 1735, 1735, 2337)
    ]


def test_solar_files_part_no_module_and_name_no_label_in_lists(prepare, cells, tmp_path):
    prepare.write(cells, tmp_path)
    with (tmp_path / "cells.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sides = {split: {row["module"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert [len(sides[split]) for split in ("train", "val")] == [28, 12]
    assert not sides["train"] & sides["val"]
    for split in sides:
        assert (tmp_path / f"{split}.txt").read_text().split() == [row["path"] for row in rows if row["split"] == split]
    levels = {(row["probability"], row["defect"]) for row in rows}
    assert levels == {("0.00", "functional"), ("0.33", "functional"), ("0.67", "defective"), ("1.00", "defective")}
    held_out = {row["path"] for row in rows if row["split"] == "val"}
    assert set((tmp_path / "cracks.txt").read_text().split()) < held_out


def test_solar_prepare_says_how_to_install_the_images(prepare, monkeypatch):
    monkeypatch.setitem(prepare.read_cells.__globals__, "resources", SimpleNamespace(files=_missing))
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[examples\]'"):
        prepare.read_cells()


def _missing(package):
    raise ModuleNotFoundError(package)


def test_solar_features_that_know_the_class_are_judged_perfect(frozen):
    """Few labels are drawn from the training cells, and scores are of the held-out ones."""
    names = [f"{index}.png" for index in range(60)]
    labels = np.array([0, 1, 1] * 20)
    train, held_out = (_Source(names[part], labels[part]) for part in (slice(0, 40), slice(40, 60)))
    features = {name: np.array([label, 0.5], np.float32) for name, label in zip(names, labels, strict=True)}
    scores = frozen.judge(features, frozen.Cells(train, held_out), count=10, draw=0)
    assert scores == {"auroc": 1, "auroc_within": 1, "average_precision": 1, "balanced_accuracy": 1}
    features = {name: -feature if name in names[40:] else feature for name, feature in features.items()}
    assert frozen.judge(features, frozen.Cells(train, held_out), count=0, draw=0)["auroc"] == 0


def test_solar_auroc_within_modules_knows_no_difference_between_them(frozen):
    """Pairs of one group: 3 of 4 in group 0, 1 of 2 in group 1; group 2 has none."""
    truth_N = np.array([True, True, False, False, True, False, False, True])
    share_N = np.array([0.9, 0.2, 0.1, 0.3, 0.8, 0.7, 0.85, 0.0])
    group_N = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    assert frozen.auroc_within(truth_N, share_N, group_N) == pytest.approx(4 / 6)


def test_solar_page_has_means_and_intervals_over_seeds(page, tmp_path, monkeypatch):
    """50 and 70 %, of two seeds: 60 ± 12.7 * 14.1 / 2 ** .5; one seed has no interval; a dash for what no run has."""
    of_runs = {"10": [_scores(0.5), _scores(0.7)], "all": [_scores(0.8)]}
    scores = {"frozen": {"HOG": {"10": [_scores(0.55)]}}, "fine-tuned": {"MAE": of_runs}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    monkeypatch.setattr("sys.argv", ["page.py", str(tmp_path)])
    page.main()
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[:3] == [
        "| AUROC, %: fine-tuned | 10 labels | 50 labels | 200 labels | all labels |",
        "|---|---|---|---|---|",
        "| MAE | 60.0 ± 127.1 | – | – | 80.0 |",
    ]
    html = (tmp_path / "page.html").read_text()
    assert html.count("<table>") == html.count("</table>") == 8
    assert "<td>60.0 ± 127.1</td>" in html
    assert html.count("<svg") == 1
    assert "http" not in re.sub(r"<svg.*</svg>", "", html, flags=re.DOTALL)


def _scores(value):
    return dict.fromkeys(("auroc", "auroc_within", "average_precision", "balanced_accuracy"), value)


class _Source(Source):
    """Labelled images without pixels."""

    def __init__(self, names, labels):
        super().__init__("train", DataSettings())
        self.names, self.labels, self.classes = names, labels, ("defective", "functional")

    def __len__(self):
        return len(self.names)

    def read(self, index):
        raise NotImplementedError

    def describe(self, index):
        return f"/images/{self.names[index]}"
