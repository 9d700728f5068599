"""Few labels: the same images as ever for share and per_class; LABELS.count; labels of other kinds, and groups."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from mim.data.labels.labelled import Labelled
from mim.data.labels.settings import LabelSettings
from mim.data.settings import DataSettings
from mim.data.sources.base import Source
from mim.data.sources.digits import Digits
from mim.data.sources.subset import Subset, few_labels
from mim.structures import LabelKind, LabelSpec


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits("train", DataSettings(channels=1))


def chosen(source: Source, **keys: object) -> list[int]:
    subset = few_labels(source, LabelSettings(**keys))
    assert isinstance(subset, Subset)
    return subset.chosen


def of(digits: Digits, labels: np.ndarray, kind: LabelKind, groups: np.ndarray | None = None) -> Source:
    names = tuple("abcde") if kind == "class" else tuple("xy"[: labels.shape[1]])
    rows = np.arange(len(labels))
    return Labelled(
        *(digits, rows, "train", LabelSpec(kind, names)), labels=labels, masks=None, groups=groups, origin="the labels"
    )


@pytest.mark.parametrize(
    ("keys", "count", "checksum"),
    [
        ({"share": 0.1}, 140, "aa6e3fce212c940d"),
        ({"share": 0.37, "seed": 2}, 530, "0704f30445033767"),
        ({"per_class": 7}, 70, "3cc47b523894bdc5"),
        ({"per_class": 100, "seed": 1}, 1000, "4f9fe47061c14876"),
    ],
)
def test_few_labels_are_those_of_0_1_0(digits: Digits, keys: dict, count: int, checksum: str) -> None:
    indices = chosen(digits, **keys)
    assert len(indices) == count
    assert hashlib.sha256(str(indices).encode()).hexdigest()[:16] == checksum


def test_few_labels_of_a_count_are_balanced_and_one_in_the_other(digits: Digits) -> None:
    choices = [chosen(digits, count=count) for count in (4, 10, 50, 200)]
    assert list(map(len, choices)) == [4, 10, 50, 200]
    for smaller, larger in pairwise(choices):
        assert {*smaller} < {*larger}
    assert [np.bincount(digits.labels[each], minlength=10).tolist() for each in choices[1:]] == [
        [number] * 10 for number in (1, 5, 20)
    ]
    assert max(np.bincount(digits.labels[choices[0]])) == 1
    assert chosen(digits, count=50, seed=1) != choices[2]
    assert {*chosen(digits, per_class=5)} == {*choices[2]}


def test_few_labels_of_a_count_take_more_of_others_where_a_class_has_few(digits: Digits) -> None:
    labels = np.array([0] * 30 + [1] * 2 + [2] * 30)
    indices = chosen(of(digits, labels, "class"), count=20)
    assert np.bincount(labels[indices]).tolist() == [9, 2, 9]
    assert few_labels(of(digits, labels, "class"), LabelSettings(count=62)).labels.tolist() == labels.tolist()
    with pytest.raises(ValueError, match=r"LABELS\.count is 63, and there are 62 training images"):
        chosen(of(digits, labels, "class"), count=63)


def test_few_labels_of_numbers_are_drawn_and_keep_groups_whole(digits: Digits) -> None:
    numbers, groups = np.arange(80, dtype=np.float32)[:, None], np.repeat(np.arange(10), 8)
    source = of(digits, numbers, "number", groups)
    indices = chosen(source, share=0.3)
    assert len(indices) == 24
    assert all(len({*indices} & {*np.flatnonzero(groups == group)}) in (0, 8) for group in range(10))
    assert len(chosen(source, share=0.25)) == 24  # whole groups, at least as many
    assert len(chosen(of(digits, numbers, "number"), share=0.3)) == 24
    single = chosen(source, count=7)
    assert len(single) == 7
    assert {*single} < {*chosen(source, count=30)}
    few = few_labels(source, LabelSettings(count=7))
    assert (few.labels[:, 0].tolist(), few.groups.tolist()) == (single, groups[single].tolist())
    assert few.label_spec == source.label_spec
    with pytest.raises(
        ValueError, match=r"LABELS\.per_class is for labels of kind class, and these are of kind number"
    ):
        chosen(source, per_class=2)


def test_listing_writes_labels_of_every_kind(digits: Digits) -> None:
    several = of(digits, np.array([[1, 1], [0, 1], [0, 0]], np.float32), "classes")
    numbers = of(digits, np.array([[0.25], [3.0]], np.float32), "number")
    assert [line.split("\t")[1:] for line in Subset(several, [0, 1, 2]).listing().splitlines()] == [
        ["x|y"],
        ["y"],
        [""],
    ]
    assert [line.split("\t")[1:] for line in Subset(numbers, [1, 0]).listing().splitlines()] == [["3"], ["0.25"]]
