"""The table of results as LaTeX and Markdown: numbers, marks, names that hold signs, and widths."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from comparisons import COLUMNS, NAMES, comparison

from mim.lab.comparison import write
from mim.lab.comparison.result import Column, Comparison, Entry
from mim.lab.comparison.views.papers import latex, markdown
from mim.lab.comparison.views.terminal import INTERVALS
from mim.ops.intervals import estimate

HOSTILE = ("[b]*a--b_c & 100% #1 $x$", '{y} \\z ~^|<>"', "a\nb \x1b[31m|")
TEX = r"""\documentclass[twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\begin{document}
\input{comparison}
\end{document}
"""


def wide(columns: int) -> Comparison:
    """Two entries over three seeds, with so many accuracies."""
    titles = [f"fine-tuning, {10**number} labels" for number in range(columns)]
    described = tuple(Column(title, title, "%", "accuracy", "higher") for title in titles)
    values = {"MAE": (93.1, 93.4, 92.7), "a rather long name of a recipe": (88.0, 88.2, 88.9)}
    entries = tuple(
        Entry(name, "", (0, 1, 2), (), dict.fromkeys(titles, estimate(each)), dict.fromkeys(titles, each))
        for name, each in values.items()
    )
    return Comparison("wide", "2026-03-02", entries, described, best=dict.fromkeys(titles, "MAE"))


def latex_tables(text: str) -> list[list[list[str]]]:
    """The rows of each outer tabular, as the texts of their cells; lines within a cell are joined by a blank."""
    text = re.sub(
        r"\\begin\{tabular\}\[.\]\{@\{\}.@\{\}\}(.*?)\\end\{tabular\}", lambda m: re.sub(r" \\\\ ", " ", m[1]), text
    )
    tables = re.findall(r"\\begin\{tabular\}\{.*?\}\n(.*?)\\end\{tabular\}", text, re.S)
    rules = r"^\s*\\(?:top|mid|bottom)rule$\n?"
    return [
        [
            re.split(r"(?<!\\) ?& ", row.strip())
            for row in re.sub(rules, "", table, flags=re.M).split(r" \\")
            if row.strip()
        ]
        for table in tables
    ]


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", cell)]


def expected(result: Comparison, key: str, row: int) -> list[object]:
    value = result.entries[row].metrics[key]
    return [pytest.approx(value.mean, abs=0.06), pytest.approx(value.half, abs=0.06)]


KEYS = ("knn/top1", "finetune/top1", "val/loss")


def test_latex_has_a_row_an_entry_and_a_column_a_metric():
    result = comparison()
    tables = latex_tables(latex(result))
    heads = [head for table in tables for head in table[0][1:]]
    assert heads == [r"kNN, \%", r"Fine-tuning, \%\textsuperscript{1}", r"Held-out loss\textsuperscript{2}"]
    for row, name in enumerate(NAMES):
        assert {table[row + 1][0] for table in tables} == {name}
        cells = [cell for table in tables for cell in table[row + 1][1:]]
        assert [numbers(cell) for cell in cells] == [expected(result, key, row) for key in KEYS]
        assert all(r" $\pm$ " in cell for cell in cells)
        bold = [cell.startswith(r"\textbf{") for cell in cells]
        assert bold == [result.best.get(key) == name for key in KEYS]
    assert sum(map(len, tables)) == len(tables) * (1 + len(NAMES))


def test_markdown_has_the_same_cells_as_latex():
    result = comparison()
    head, *rows = markdown_rows(markdown(result))
    assert head == ["Recipe", "kNN, %", "Fine-tuning, % (1)", "Held-out loss (2)"]
    for row, cells in enumerate(rows):
        assert cells[0] == NAMES[row]
        assert [numbers(cell) for cell in cells[1:]] == [expected(result, key, row) for key in KEYS]
        assert [cell.startswith("**") for cell in cells[1:]] == [result.best.get(key) == NAMES[row] for key in KEYS]


@pytest.mark.parametrize("text", [latex, markdown])
def test_caption_says_what_the_numbers_are(text):
    several, single = text(comparison()), text(comparison(seeds=(0,)))
    assert "interval over 3 seeds; bold" in several.replace("\n", " ")
    assert "not compare: targets differ" in several
    assert "interval" not in single
    assert INTERVALS.partition(";")[2].strip() not in text(replace(comparison(), best={}))


def test_entries_of_other_seeds_have_a_column_of_seeds():
    result = comparison()
    fewer = replace(result.entries[0], seeds=(0, 1))
    result = replace(result, entries=(fewer, *result.entries[1:]))
    head, first, *others = markdown_rows(markdown(result))
    assert head[1] == "Seeds"
    assert [row[1] for row in (first, *others)] == ["2", "3", "3"]
    assert first[2].endswith("(n = 3)")
    assert latex_tables(latex(result))[0][1][1] == "2"


def test_latex_puts_columns_that_do_not_fit_below():
    tables = latex_tables(latex(wide(7)))
    heads = [head for table in tables for head in table[0][1:]]
    assert heads == [rf"Fine-tuning, {10**number} labels, \%" for number in range(7)]
    assert len(tables) > 1
    assert len(tables[0][0]) > 2
    assert {table[1][0] for table in tables} == {"MAE"}


def test_signs_in_names_stay_text():
    tex = latex(comparison(HOSTILE))
    tables = latex_tables(tex)
    assert {len(row) for row in tables[0]} == {len(tables[0][0])}
    bare = re.sub(r"\\[\\{}$&#_%]", "", tex)
    assert bare.count("{") == bare.count("}")
    names = [row[0] for row in tables[0][1:]]
    assert names[0] == r"{[}b{]}{*}a-{}-b\_c \& 100\% \#1 \$x\$"
    after = "".join(rf"\text{sign}{{}}" for sign in ("asciitilde", "asciicircum", "bar", "less", "greater", "quotedbl"))
    assert names[1] == r"\{y\} \textbackslash{}z " + after
    assert names[2] == r"a?b ?{[}31m\textbar{}"
    assert "\x1b" not in tex
    rows = markdown_rows(markdown(comparison(HOSTILE)))
    assert {len(row) for row in rows} == {4}
    assert re.sub(r"\\(.)", r"\1", rows[1][0]) == HOSTILE[0]


def test_table_without_accuracy_and_loss_is_refused_before_a_file_is_written(tmp_path):
    result = replace(comparison(), columns=COLUMNS[3:], best={})
    with pytest.raises(ValueError, match="no run has an accuracy"):
        latex(result)
    with pytest.raises(ValueError, match="no format 'html': name one of latex, markdown"):
        write(result, tmp_path / "out", ["html"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("result", [comparison(), comparison(HOSTILE), wide(7)], ids=["typical", "signs", "wide"])
def test_latex_compiles_and_fits_a_column(result, tmp_path):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex on the path")
    (tmp_path / "comparison.tex").write_text(latex(result), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(TEX)
    words = [program, "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
