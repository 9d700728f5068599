"""ComparedRuns: the tables, intervals and warnings of a comparison in a notebook."""

from dataclasses import fields, replace

from comparisons import comparison
from markupsafe import escape

from mim.lab.notebook import ComparedRuns


def compared(**changes) -> ComparedRuns:
    plain = replace(comparison(), **changes)
    return ComparedRuns(**{field.name: getattr(plain, field.name) for field in fields(plain)})


def test_compared_runs_show_tables_with_intervals_and_warnings():
    result = compared(warnings=("of <unlike> lengths",), left_out=(("runs/x", "no summary"),), sheets=())
    html = result._repr_html_()
    assert html.count("<table") == 2
    assert "\N{PLUS-MINUS SIGN}" in html
    assert "of &lt;unlike&gt; lengths" in html
    assert "Left out: runs/x: no summary" in html
    for entry in result.entries:
        assert escape(entry.name) in html
    assert "<script" not in html
    assert f"{len(result.entries)} entries" in repr(result)
    assert len(repr(result)) < 200


def test_compared_runs_show_at_most_two_sheets():
    sheet = comparison().sheets[0]
    for count, expected in ((0, 0), (1, 1), (3, 2)):
        assert compared(sheets=(sheet,) * count)._repr_html_().count("<img") == expected
