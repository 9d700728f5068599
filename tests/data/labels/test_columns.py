"""Columns: which kind of labels their values are, and labels as arrays."""

import numpy as np
import pytest

from mim.data.labels.columns import Labels, read_labels
from mim.data.labels.settings import LabelSettings


def read(columns: dict[str, list[str]], **keys: object) -> Labels:
    return read_labels(columns, LabelSettings(**keys), lambda row: f"t.csv line {row + 2}", "t.csv")


@pytest.mark.parametrize(
    ("columns", "kind", "names", "values", "said"),
    [
        ({"c": ["dog", "cat", "dog"]}, "class", ("cat", "dog"), [1, 0, 1], "2 classes, cat, dog"),
        ({"c": ["1", "0", "1", "1"]}, "class", ("0", "1"), [1, 0, 1, 1], "0 to 1 are taken for classes"),
        (
            {"c": ["10", "9", "11", "9", "10", "11", "8", "7", "6", "5", "4", "3", "2", "1"] * 2},
            *("class", tuple(map(str, range(1, 12))), [9, 8, 10, 8, 9, 10, 7, 6, 5, 4, 3, 2, 1, 0] * 2),
            "1 to 11 are taken for classes; LABELS.kind number",
        ),
        (
            {"p": ["0.0", "0.333", "1.0", "0.667"]},
            *("number", ("p",), [[0.0], [0.333], [1.0], [0.667]]),
            "4 different ones, 0 to 1: LABELS.kind class makes each a class, and LABELS.bins ranges",
        ),
        ({"x": ["1", "2e3"], "y": ["-.5", "7"]}, "number", ("x", "y"), [[1, -0.5], [2000, 7]], "all columns hold num"),
        ({"a": ["1", "0"], "b": ["true", "False"]}, "classes", ("a", "b"), [[1, 1], [0, 0]], "columns hold 0 and 1"),
        (
            {"tags": ["dog|cat", "bird", "cat | dog"]},
            *("classes", ("bird", "cat", "dog"), [[0, 1, 1], [1, 0, 0], [0, 1, 1]]),
            "'dog|cat' has the separator '|'; LABELS.kind class keeps it whole",
        ),
        ({"c": ["a, b", "c; d"]}, "class", ("a, b", "c; d"), [0, 1], "2 classes"),
    ],
    ids=["text", "binary", "codes", "decimals", "numbers", "zero-one", "names", "commas"],
)
def test_columns_kind_is_decided_by_the_values_and_said(columns, kind, names, values, said) -> None:
    labels = read(columns)
    assert (labels.spec.kind, labels.spec.names) == (kind, names)
    assert np.allclose(labels.values, values)
    assert labels.values.dtype == (np.int64 if kind == "class" else np.float32)
    assert said in labels.note


@pytest.mark.parametrize("texts", [["3", "17", "88", "42"], ["0", "1", "2", "3"], ["-1", "1"] * 4])
def test_columns_of_whole_numbers_that_may_be_either_need_the_key(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"column age of t\.csv .*different whole numbers.*LABELS\.kind class or"):
        read({"age": texts})
    assert read({"age": texts}, kind="number").values[:, 0].tolist() == list(map(float, texts))
    assert read({"age": texts}, kind="class").spec.names == tuple(sorted(set(texts), key=float))


def test_columns_kind_that_is_named_wins(tmp_path) -> None:
    assert read({"p": ["0.5", "0.25"]}, kind="class").spec.names == ("0.25", "0.5")
    assert read({"c": ["a|b", "c"]}, kind="class").spec.names == ("a|b", "c")
    assert read({"c": ["a;b", "c"]}, kind="classes", separator=";").values.tolist() == [[1, 1, 0], [0, 0, 1]]
    assert read({"defect": ["1", "0"]}, kind="classes").values.tolist() == [[1], [0]]
    assert read({"c": ["0", "1"]}, kind="number").values.tolist() == [[0], [1]]


def test_columns_bins_cut_numbers_into_classes_and_an_edge_belongs_above() -> None:
    labels = read({"p": ["0", "0.333", "0.5", "0.667", "1"]}, bins=(0.5,))
    assert (labels.spec.kind, labels.spec.names) == ("class", ("<0.5", ">=0.5"))
    assert labels.values.tolist() == [0, 0, 1, 1, 1]
    labels = read({"p": ["-3", "0", "4", "10"]}, bins=(0.0, 10.0), kind="class")
    assert labels.spec.names == ("<0", "0 to <10", ">=10")
    assert labels.values.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"p": ["0.5", "nan"]}, {}, r"t\.csv line 3, column p: nan is not finite"),
        ({"p": ["-inf", "0.5"]}, {}, r"line 2, column p: -inf is not finite"),
        ({"p": ["1e39", "0.5"]}, {}, r"line 2, column p: 1e39 is not finite in float32"),
        ({"p": ["0.5", "x"]}, {"kind": "number"}, r"line 3, column p: 'x' is no number"),
        ({"p": ["0,5"]}, {"kind": "number"}, r"'0,5' is no number, so write a point in place of the comma"),
        ({"p": ["0.5", "x"]}, {"bins": (1.0,)}, r"line 3, column p: 'x' is no number"),
        ({"a": ["1", "0"], "b": ["1", "dog"]}, {}, r"line 3, column b: 'dog' is no number"),
        ({"a": ["1", "0"], "b": ["1", "2"]}, {"kind": "classes"}, r"line 3, column b: '2' is not 0 or 1"),
        ({"a": ["x"], "b": ["y"]}, {"kind": "class"}, r"LABELS\.kind class is for one column.*there are 2, a, b"),
        ({"a": ["x|y"]}, {"kind": "classes", "separator": ""}, r"LABELS\.separator is empty"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_the_line_and_the_value(columns, keys, message) -> None:
    with pytest.raises(ValueError, match=message):
        read(columns, **keys)
