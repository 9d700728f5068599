"""Splits: folds, groups and columns; every image on one side, groups whole, classes as equal as they can be."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from label_files import join, sources, write_table
from sklearn.model_selection import StratifiedGroupKFold
from small_data import logged, write_digits

from mim.data.labels.labelled import Labelled
from mim.data.labels.splits import fold_of, split_rows
from mim.data.sources.base import Source
from mim.structures import LabelSpec

NAMES = [f"image {number:03d}" for number in range(60)]
CLASSES = np.arange(60) % 3 % 2  # 40 and 20 images
GROUPS = np.arange(60) // 4


def stems(source: Source) -> set[str]:
    return {Path(source.describe(index)).stem for index in range(len(source))}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits with a class, a patient and a split."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "images", 40)
    splits = ["train", "Training", "val", "validation", "test"]
    rows = [f"digit-{n:03d}.png,{'ill' if n % 4 == 0 else 'well'},p{n // 3},{splits[n % 5]}" for n in range(40)]
    return write_table(folder, "path,class,patient,split", rows)


def split(table: Path, **keys: object) -> tuple[Source, Source]:
    return join(table.parent / "images", **{"file": table, "columns": ("class",), "val_share": 0.2, **keys})


# ---------------------------------------------------------------- folds


def test_folds_are_stratified_and_equally_large() -> None:
    fold_N = fold_of(NAMES, CLASSES, None, 5, 0)
    assert np.bincount(fold_N).tolist() == [12] * 5
    for label, count in ((0, 8), (1, 4)):
        assert np.bincount(fold_N[label == CLASSES]).tolist() == [count] * 5
    uneven = fold_of(NAMES[:50], CLASSES[:50], None, 4, 0)
    assert sorted(np.bincount(uneven).tolist()) == [12, 12, 13, 13]
    for label in (0, 1):
        counts = np.bincount(uneven[CLASSES[:50] == label])
        assert counts.max() - counts.min() <= 1


def test_folds_keep_groups_whole_and_classes_close() -> None:
    """As close as scikit-learn's StratifiedGroupKFold, which deals groups likewise; groups have 2 to 10 images here."""
    group_N = np.random.default_rng(0).integers(12, size=60)
    fold_N, theirs_N = fold_of(NAMES, CLASSES, group_N, 4, 0), np.empty(60, int)
    assert all(len(set(fold_N[group_N == group])) == 1 for group in range(12))
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    for number, (_, held_out) in enumerate(folds.split(CLASSES, CLASSES, group_N)):
        theirs_N[held_out] = number
    for chosen in (CLASSES == 0, CLASSES == 1, CLASSES >= 0):
        ours, theirs = (np.ptp(np.bincount(each[chosen], minlength=4)) for each in (fold_N, theirs_N))
        assert ours <= theirs + 1


def test_folds_are_a_function_of_the_seed_and_the_order_of_names_alone() -> None:
    order = np.random.default_rng(1).permutation(60)
    for groups in (None, GROUPS):
        fold_N = fold_of(NAMES, CLASSES, groups, 5, 3)
        moved = [f"/elsewhere/{NAMES[index]}" for index in order]
        shuffled_N = fold_of(moved, CLASSES[order], None if groups is None else groups[order], 5, 3)
        assert np.array_equal(shuffled_N, fold_N[order])
        assert not np.array_equal(fold_N, fold_of(NAMES, CLASSES, groups, 5, 4))


def test_folds_do_not_change_between_versions() -> None:
    """A resumed run holds out the same images."""
    assert fold_of(NAMES[:12], CLASSES[:12], None, 3, 0).tolist() == [1, 2, 2, 1, 1, 1, 0, 2, 0, 2, 0, 0]
    assert fold_of(NAMES[:12], None, GROUPS[:12] // 2, 2, 0).tolist() == [0] * 8 + [1] * 4


def test_folds_hold_out_every_image_once(table: Path) -> None:
    held_out: Counter[str] = Counter()
    for fold in range(4):
        train, val = split(table, folds=4, fold=fold, group="patient")
        assert not {*train.groups} & {*val.groups}
        assert stems(train) | stems(val) == {f"digit-{number:03d}" for number in range(40)}
        held_out.update(stems(val))
    assert set(held_out.values()) == {1}
    assert len(held_out) == 40
    assert split(table, folds=4)[1].label_spec.names == ("ill", "well")
    with pytest.raises(ValueError, match=r"LABELS\.folds is 15, and there are 14 groups"):
        split(table, folds=15, group="patient")


def test_folds_of_class_folders_need_no_table(tmp_path: Path) -> None:
    for name, first in (("10", 0), ("9", 10)):
        write_digits(tmp_path / name, 6, first)
    seen: Counter[str] = Counter()
    for fold in range(3):
        train, val = join(tmp_path, folds=3, fold=fold)
        assert (np.bincount(train.labels).tolist(), np.bincount(val.labels).tolist()) == ([4, 4], [2, 2])
        assert val.label_spec == LabelSpec("class", sources(tmp_path)[0].classes)
        seen.update(stems(val))
    assert set(seen.values()) == {1}


# ---------------------------------------------------------------- groups and columns


def test_groups_are_held_out_whole_by_a_hash_of_their_name(table: Path) -> None:
    train, val = split(table, group="patient", val_share=0.4)
    assert not {*train.groups} & {*val.groups}
    assert len(train) + len(val) == 40
    before = {n // 3 for n in range(40) if f"digit-{n:03d}" in stems(val)}
    rows = [f"digit-{n:03d}.png,{'ill' if n % 4 == 0 else 'well'},p{n // 3}" for n in range(21)]
    smaller = write_table(table.parent / "smaller", "path,class,patient", rows)
    _, val = split(table, group="patient", file=smaller, unlabelled="skip", val_share=0.4)
    assert (
        {n // 3 for n in range(21) if f"digit-{n:03d}" in stems(val)}
        == {group for group in before if group < 7}
        != set()
    )


def test_groups_on_both_sides_of_a_split_that_the_data_has_are_refused(table: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "train", 30)
    write_digits(tmp_path / "val", 10, 30)  # patient 9 has 27, 28 and 29
    train, val = join(tmp_path, file=table, columns=("class",), group="patient")
    assert (len(train), len(val)) == (30, 10)
    (tmp_path / "train" / "digit-029.png").rename(tmp_path / "val" / "digit-029.png")
    with pytest.raises(ValueError, match=r"LABELS\.group patient: 1 groups have .*'p9' \(3 images\): \S*digit-027"):
        join(tmp_path, file=table, columns=("class",), group="patient")
    train, val = join(tmp_path, file=table, columns=("class",), group="patient", folds=3)
    assert not {*train.groups} & {*val.groups}


def test_split_column_says_which_images_are_held_out(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mim")
    with logged() as lines:
        train, val = split(table, split_column="split")
    assert stems(train) == {f"digit-{number:03d}" for number in range(40) if number % 5 in (0, 1)}
    assert stems(val) == {f"digit-{number:03d}" for number in range(40) if number % 5 in (2, 3)}
    assert lines[1].endswith("16 training and 16 held-out images (by column split, 8 test images left out)")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 1}, r"LABELS\.folds is 1: at least 2"),
        ({"folds": 3, "fold": 3}, r"LABELS\.fold is 3 and LABELS\.folds 3"),
        ({"folds": 3, "split_column": "split"}, r"LABELS\.folds 3 and LABELS\.split_column split: give one"),
        ({"share": 0.5, "count": 10}, r"LABELS\.share 0\.5 and LABELS\.count 10: give one of them"),
        ({"kind": "number", "per_class": 2}, r"LABELS\.per_class is for labels of kind class"),
        ({"kind": "number", "balance": True}, r"LABELS\.balance is for labels of kind class"),
        ({"kind": "number", "bins": (0.5,)}, r"LABELS\.bins cuts numbers into classes"),
        ({"bins": (0.5, 0.2)}, r"LABELS\.bins is \[0\.5, 0\.2\]: the numbers must rise"),
        ({"file": "", "columns": ("class",)}, r"LABELS\.columns names columns of a table"),
        ({"kind": "mask"}, r"LABELS\.kind is mask: name the folder"),
    ],
)
def test_label_settings_that_exclude_each_other_are_refused(table: Path, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(table, **{"columns": (), **keys})


# ---------------------------------------------------------------- split_rows


def of(labels: np.ndarray, kind: str = "class", groups: np.ndarray | None = None) -> Source:
    (train, _) = sources(IMAGES[0])
    rows = np.arange(len(labels)) % len(train)
    names = tuple("abc") if kind == "class" else ("x",)
    return Labelled(
        *(train, rows, "train", LabelSpec(kind, names)), labels=labels, masks=None, groups=groups, origin="the labels"
    )


IMAGES: list[Path] = []


@pytest.fixture(autouse=True)
def _images(table: Path) -> None:
    IMAGES[:] = [table.parent / "images"]


def test_split_rows_are_two_stratified_parts_that_depend_on_the_seed() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    left, chosen = split_rows(of(labels), 0.2, 0)
    assert sorted([*left, *chosen]) == list(range(100))
    assert np.bincount(labels[chosen]).tolist() == [10, 6, 4]
    assert not np.array_equal(chosen, split_rows(of(labels), 0.2, 1)[1])
    assert np.array_equal(chosen, split_rows(of(labels), 0.2, 0)[1])
    for count in (2, 3, 7, 19):
        labels = np.arange(count) % 3
        left, chosen = split_rows(of(labels), 0.1, 0)
        assert len(chosen) == max(1, round(0.1 * count))
        assert len(left) + len(chosen) == count


def test_split_rows_keep_groups_whole_and_classes_close() -> None:
    labels, groups = np.arange(90) % 3, np.random.default_rng(0).integers(30, size=90)
    left, chosen = split_rows(of(labels, groups=groups), 0.3, 0)
    assert not {*groups[left]} & {*groups[chosen]}
    assert abs(len(chosen) - 27) <= 3
    assert np.ptp(np.bincount(labels[chosen])) <= 3
    two = np.array([7] * 80 + [8] * 10)
    assert sorted(map(len, split_rows(of(labels, groups=two), 0.5, 0))) == [10, 80]
    with pytest.raises(ValueError, match="1 groups cannot be split in two"):
        split_rows(of(labels, groups=np.zeros(90, int)), 0.5, 0)


def test_split_rows_of_numbers_are_drawn() -> None:
    left, chosen = split_rows(of(np.arange(40, dtype=np.float32)[:, None], "number"), 0.25, 0)
    assert (len(left), len(chosen)) == (30, 10)
    assert sorted([*left, *chosen]) == list(range(40))
