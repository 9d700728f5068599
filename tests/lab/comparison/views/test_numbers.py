"""How metrics are written: units, digits, ticks."""

import math

import pytest

from mim.lab.comparison.result import Column, Entry
from mim.lab.comparison.views.numbers import (
    ANY,
    bounds_of,
    cells,
    interval_texts,
    p_text,
    short,
    style_of,
    styles_of,
    ticks,
)
from mim.ops.intervals import Estimate


def estimate_texts(unit, *metrics):
    """Each metric, a mean or a mean and half an interval, as a column of them shows it; then the unit."""
    estimates = [Estimate(*(metric if isinstance(metric, tuple) else (metric, None)), 3) for metric in metrics]
    style = style_of(unit, estimates)
    texts = [
        style.text(estimate.mean) + ("" if estimate.half is None else f" ± {style.text(estimate.half)}")
        for estimate in estimates
    ]
    return [*texts, style.unit]


@pytest.mark.parametrize(
    ("unit", "metrics", "expected"),
    [
        ("%", (96.389, 9.4), ["96.4", "9.4", "%"]),
        ("%", (97.0, 98.0), ["97.0", "98.0", "%"]),
        ("%", ((83.612, 0.078), (83.9, 0.061)), ["83.61 ± 0.08", "83.90 ± 0.06", "%"]),
        ("%", ((57.6, 14.2), (84.5, 36.4)), ["57.6 ± 14.2", "84.5 ± 36.4", "%"]),
        ("", (0.28213, 1.858), ["0.282", "1.858", ""]),
        ("", ((0.57213, 0.0031), (0.43, 0.0785)), ["0.572 ± 0.003", "0.430 ± 0.079", ""]),
        ("", (-0.5,), ["\N{MINUS SIGN}0.500", ""]),
        ("", (1437.0, 21.0), ["1,437", "21", ""]),
        ("", (86_567_656.0, 303_301_632.0), ["86.6", "303.3", "M"]),
        ("", (1e-9,), ["1e\N{MINUS SIGN}09", ""]),
        ("", (0.0, 0.0), ["0", "0", ""]),
        ("", (math.nan, 0.5), ["not finite", "0.500", ""]),
        ("FLOP", (1.76e10, 5.5e10), ["17.6", "55.0", "GFLOP"]),
        ("B", (401e6, 512e6), ["382", "488", "MiB"]),
        ("s", (69.0, 57.0), ["69", "57", "s"]),
        ("s", (7300.0, 14500.0), ["2.03", "4.03", "h"]),
        ("s", ((169.0, 2.0), (157.0, 4.0)), ["2.82 ± 0.03", "2.62 ± 0.07", "min"]),
        ("images/s", ((673.2, 42.0), (1532.0, 12.0)), ["673 ± 42", "1,532 ± 12", "images/s"]),
        ("MiB", ((381.2500001, 1e-7),), ["381.25 ± 0.00", "MiB"]),
    ],
)
def test_style_suits_a_column(unit, metrics, expected):
    assert estimate_texts(unit, *metrics) == expected


def test_styles_of_percentages_of_a_section_are_alike():
    columns = [Column(key, key, unit, "accuracy", "higher") for key, unit in (("a", "%"), ("b", "%"), ("c", "s"))]
    metrics = {"a": Estimate(90.0, 1.2, 3), "b": Estimate(91.0, 0.01, 3), "c": Estimate(300.0, 6.0, 3)}
    styles = styles_of(columns, [Entry("MAE", "", (0, 1, 2), (), metrics)])
    assert styles["a"] == styles["b"] != styles["c"]
    assert (styles["a"].digits, styles["c"].unit) == (2, "min")


def test_cells_mark_the_best_entry_and_how_many_runs_are_behind_a_metric():
    entries = [Entry(name, "", (0, 1, 2), (), {}) for name in "abcd"]
    metrics = [Estimate(97.21, 0.2, 3), Estimate(97.24, 10.0, 2), None, Estimate(math.nan, None, 3)]
    style = style_of("%", [Estimate(97.0, 0.2, 3)])
    for best, marked in (("b", [False, True, False, False]), ("", [False] * 4)):
        rows = cells(entries, metrics, style, best, ANY)
        assert [cell.best for cell in rows] == marked
        assert [cell.runs for cell in rows] == [None, 2, None, None]
        assert [cell.order for cell in rows] == [97.21, 97.24, None, None]
        assert [cell.half for cell in rows[:2]] == ["± \N{FIGURE SPACE}0.2", "± 10.0"]
        assert len({len(cell.half) for cell in rows}) == 1


def test_intervals_are_halves_or_both_ends_where_one_leaves_what_the_metric_can_be():
    def texts(bounds, *metrics):
        estimates = [None if each is None else Estimate(*each, 3) for each in metrics]
        texts = interval_texts(estimates, style_of("%", estimates), bounds)
        assert len({len(text) for text in texts}) == 1
        return [text.replace("\N{FIGURE SPACE}", "") for text in texts]

    assert texts((0.0, 100.0), (45.3, 127.1), (55.0, 14.1), None) == ["[0.0, 100.0]", "[40.9, 69.1]", ""]
    assert texts((0.0, 100.0), (78.5, 9.0), (55.0, 14.1), (60.0, None)) == ["± 9.0", "± 14.1", ""]
    assert texts((0.0, math.inf), (0.5, 0.7)) == ["[0.0, 1.2]"]
    assert texts(ANY, (0.5, 0.7)) == ["± 0.7"]
    assert texts((0.0, 100.0), (100.0, 0.0), (100.0, 0.0)) == ["", ""]  # counted, the same in every run


def test_bounds_are_those_of_shares_and_0_unless_a_value_lies_below():
    def entry(*values):
        return Entry("a", "", (0, 1), (), {"m": Estimate(sum(values) / len(values), None, 2)}, {"m": values})

    assert bounds_of(Column("m", "kNN", "%", "accuracy", "higher"), [entry(50.0, 60.0)]) == (0, 100)
    assert bounds_of(Column("m", "loss", "", "loss", "lower"), [entry(0.5, 0.6)]) == (0, math.inf)
    assert bounds_of(Column("m", "loss", "", "loss", "lower"), [entry(0.5, -0.6)]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (20_000, "", "20k"),
        (7_185, "", "7.18k"),
        (640, "", "640"),
        (1.5e15, "FLOP", "1.5 PFLOP"),
        (90, "s", "90 s"),
        (120, "s", "2 min"),
        (86_400 * 3, "s", "3 days"),
    ],
)
def test_short_writes_three_digits_and_a_unit(value, unit, expected):
    assert short(value, unit).replace("\N{NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(None, "–"), (math.nan, "–"), (0.00099, "< 0.001"), (0.0123, "0.012"), (1.0, "1.000")]
)
def test_p_text_has_three_decimals(p, expected):
    assert p_text(p) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (92.5, 97.9, [93, 94, 95, 96, 97]),
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (-0.011, 0.021, [-0.01, 0.0, 0.01, 0.02]),
    ],
)
def test_ticks_are_round_and_few(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
