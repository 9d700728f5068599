"""The script of equal losses tells records that are equal to the bit from those that are not."""

import json
import math

import pytest
from same_losses import compare

ROWS = [{"train/loss": 1.5, "train/learning_rate": 0.1}, {"val/loss": 0.75}]


@pytest.fixture
def write_records(tmp_path):
    """Two records as files, the first with ROWS as its case `mae`."""

    def write(**cases):
        (tmp_path / "before.json").write_text(json.dumps({"mae": ROWS}))
        (tmp_path / "after.json").write_text(json.dumps(cases))
        return tmp_path / "before.json", tmp_path / "after.json"

    return write


def test_same_losses_are_equal_to_the_bit(write_records, capsys):
    assert compare(*write_records(mae=ROWS, simmim=ROWS)) == 0
    assert "mae: equal to the bit, 2 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows",
    [
        [{**ROWS[0], "train/loss": math.nextafter(1.5, 2)}, ROWS[1]],  # the smallest difference that there is
        ROWS[:1],
        [ROWS[0], {}],
        [ROWS[0], {"val/loss": 0.75, "val/baseline": 1.0}],
    ],
    ids=["last bit", "a row less", "a metric less", "a metric more"],
)
def test_same_losses_tell_what_differs(write_records, capsys, rows):
    assert compare(*write_records(mae=rows)) == 1
    assert "mae: differs" in capsys.readouterr().out


def test_same_losses_of_no_common_case_prove_nothing(write_records):
    assert compare(*write_records(simmim=ROWS)) == 1
