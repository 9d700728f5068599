"""Names and values in sentences."""

import pytest

from mim.lab.comparison.formatting import by_value, join_names


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["a", "b", "c"], "a, b and c"),
        (["MAE", "MAE, ratio .5"], "MAE and 'MAE, ratio .5'"),
        (["salt and pepper", "b"], "'salt and pepper' and b"),
        (list("abcdef"), "a, b, c and 3 more"),
    ],
)
def test_names_in_a_list_are_told_apart(names, text):
    assert join_names(names) == text


def test_values_with_names_that_hold_commas_stay_readable():
    assert by_value({"MAE": "1", "MAE, ratio .5": "1", "b": "2"}, ", ") == "1 in MAE and 'MAE, ratio .5', 2 in b"
