"""Tables of names: any name goes one way and comes back, numbers shifted, modules stacked; and names in words."""

import pytest
import torch
from torch import Tensor

from mim.interop.names import Row, add_prefix, fold_names, rows, to_ours, to_theirs

TABLE = rows(
    ("token", "cls"),
    ("norm", "layernorm"),
    ("blocks.{block}.qkv", ("layer.{block}.query", "layer.{block}.key", "layer.{block}.value")),
    ("blocks.{block}.fc", "layer.{block}.dense"),
    ("stages.{stage}.down", "levels.{stage-1}.reduce"),
    ("stages.{stage}.blocks.{block}.fc", "levels.{stage}.{block}.dense"),
    ("later.{number}", "sooner.{number+2}"),
)


def state(*names: str) -> dict[str, Tensor]:
    """Different weights, six long."""
    return {name: torch.arange(6.0) + 10 * number for number, name in enumerate(names)}


OURS = state(
    "token",
    "norm.weight",
    "norm.bias",
    *(f"blocks.{block}.{end}" for block in (0, 9, 10, 11) for end in ("qkv.weight", "qkv.bias", "fc.weight")),
    "stages.1.down.weight",
    "stages.12.down.weight",
    "stages.3.blocks.20.fc.bias",
    "later.5",
)


def test_names_go_there_and_come_back_to_the_bit() -> None:
    theirs, left = to_theirs(TABLE, OURS)
    assert left == []
    ours, left = to_ours(TABLE, theirs)
    assert left == []
    assert set(ours) == set(OURS)
    assert all(torch.equal(ours[name], weight) for name, weight in OURS.items())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("token", "cls"),
        ("norm.bias", "layernorm.bias"),
        ("blocks.11.fc.weight", "layer.11.dense.weight"),
        ("stages.1.down.weight", "levels.0.reduce.weight"),
        ("stages.10.down.weight", "levels.9.reduce.weight"),
        ("stages.3.blocks.20.fc.bias", "levels.3.20.dense.bias"),
        ("later.5", "sooner.7"),
    ],
)
def test_names_are_each_others(ours: str, theirs: str) -> None:
    assert list(to_theirs(TABLE, state(ours))[0]) == [theirs]
    assert list(to_ours(TABLE, state(theirs))[0]) == [ours]


def test_names_several_there_are_parts_of_one_here_in_the_order_of_the_row() -> None:
    weight = torch.arange(12.0).reshape(6, 2)
    theirs, _ = to_theirs(TABLE, {"blocks.2.qkv.weight": weight})
    for index, part in enumerate(("query", "key", "value")):
        assert torch.equal(theirs[f"layer.2.{part}.weight"], weight[2 * index : 2 * index + 2])
    turned = dict(reversed(theirs.items()))  # whatever the order in the file
    assert torch.equal(to_ours(TABLE, turned)[0]["blocks.2.qkv.weight"], weight)


def test_names_of_parts_that_are_not_all_there_are_left_over() -> None:
    theirs = state("layer.0.query.weight", "layer.0.value.weight", "layer.0.query.bias", "cls")
    ours, left = to_ours(TABLE, theirs)
    assert list(ours) == ["token"]
    assert left == ["layer.0.query.weight", "layer.0.value.weight", "layer.0.query.bias"]


@pytest.mark.parametrize(
    "name",
    [
        "cls.x",
        "xcls",
        "cls2",
        "layernorm.scale",
        "layer.dense.weight",
        "layer.a.dense",
        "layer.0.dense.weight.x",
        "layer.0xdense",
        "",
    ],
)
def test_names_that_no_row_matches_as_a_whole_are_left_over(name: str) -> None:
    ours, left = to_ours(TABLE, state(name, "cls"))
    assert (list(ours), left) == (["token"], [name])


@pytest.mark.parametrize("name", ["", "tokens", "blocks.0.qkv.scale", "blocks.fc.weight", "later.x"])
def test_names_of_ours_that_no_row_matches_are_left_over(name: str) -> None:
    theirs, left = to_theirs(TABLE, state("token", name))
    assert (list(theirs), left) == (["cls"], [name])


def test_names_without_dimensions_pass_in_both_directions() -> None:
    """A count of batches has none to cut along."""
    table, count = rows(("norm.count", "head.0.count")), torch.tensor(7)
    assert to_theirs(table, {"norm.count": count})[0] == {"head.0.count": count}
    assert to_ours(table, {"head.0.count": count})[0] == {"norm.count": count}


def test_names_of_two_rows_take_the_first_there_and_come_back_from_both() -> None:
    table = rows(("a.{n}", "new.{n}"), ("a.{n}", "old.{n}"))
    assert list(to_theirs(table, state("a.3"))[0]) == ["new.3"]
    assert [list(to_ours(table, state(name))[0]) for name in ("new.3", "old.3")] == [["a.3"], ["a.3"]]


def test_names_below_prefixes_keep_their_rows() -> None:
    table = add_prefix(rows(("a", ("b", "c"))), ours="encoder.", theirs="vit.{block}.")
    assert table == (Row("encoder.a", ("vit.{block}.b", "vit.{block}.c")),)


def test_names_dots_are_dots() -> None:
    assert to_ours(rows(("a", "b.c")), state("bxc")) == ({}, ["bxc"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ""),
        (["token"], "token"),
        (["norm.weight", "norm.bias"], "norm.{weight, bias}"),
        (["a", "b"], "{a, b}"),
        ([f"blocks.{n}.fc.weight" for n in range(12)], "blocks.0-11.fc.weight"),
        ([f"blocks.{n}.fc.{end}" for n in range(2) for end in ("weight", "bias")], "blocks.0-1.fc.{weight, bias}"),
        (
            [f"layers.{s}.blocks.{b}.norm.weight" for s in range(3) for b in range(2)],
            "layers.0-2.blocks.0-1.norm.weight",
        ),
        (["blocks.7.norm.weight", "norm.weight"], "blocks.7.norm.weight, norm.weight"),
        (["head.0", "head.1"], "head.{0, 1}"),
        ([f"blocks.{n}.norm.weight" for n in (10, 2, 0, 1, 5, 9)], "blocks.0-2,5,9-10.norm.weight"),
        (
            [f"layers.{s}.blocks.{b}.norm.weight" for s, depth in enumerate((2, 2, 6, 2)) for b in range(depth)],
            "layers.0-1,3.blocks.0-1.norm.weight, layers.2.blocks.0-5.norm.weight",
        ),
        (["a.0.b.0.c", "a.1.b.1.c"], "a.0.b.0.c, a.1.b.1.c"),
        (["a{}.0.b", "a{}.1.b"], "a{}.0-1.b"),
    ],
)
def test_in_words_folds_numbers_and_ends(names: list[str], words: str) -> None:
    assert fold_names(names) == words
