"""tools/compare.py on real runs: what it prints and writes, and what it refuses."""

import contextlib
import csv
import io
import json
import re
import shutil

import pytest
from processes import ROOT, TINY, call, tool
from rich.console import Console
from run_folders import Real, real_runs, write_run

from mim.lab.comparison import compare, show, write

SIMMIM = ROOT / "configs" / "quickstart" / "simmim_digits.yaml"
NAMES = ("<script>alert(1)</script>", "[bold red]x[/]", 'a|b,"c";d', "=1+1", "line\nbreak", "\x1b[31mred", "ü ± 文字")


@pytest.fixture(scope="module")
def real() -> Real:
    return real_runs()


def run(*words) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("compare").main([str(word) for word in words])
    return code, text.getvalue()


def printed(comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    show(comparison, console)
    return console.file.getvalue()


def table(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(real, tmp_path_factory):
    """The tool on MAE, on SimMIM, and on what came from MAE, all real."""
    folder = tmp_path_factory.mktemp("tool")
    keys = {key: value for key, value in TINY.items() if not key.startswith("HEAD.")}
    code, text = call(folder / "simmim", keys, SIMMIM)
    assert code == 0, text
    code, text = run(real.pretraining, folder / "simmim", "--output", folder / "out" / "page", "--title", "Two <ways>")
    assert code == 0, text
    return folder / "out" / "page", text


def test_compare_writes_page_and_tables_and_prints_where(done):
    output, text = done
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison_runs.csv",
        "figures",
    ]
    figures = {path.name for path in (output / "figures").iterdir()}
    names = {"knn-dots", "train-loss-over-images-seen"}
    assert {f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "png", "csv")} <= figures
    for word in (
        "mae",
        "simmim",
        "kNN, %",
        "linear-probe, %",
        "fine-tuning, %",
        "held-out loss",
        "speed",
        "Before you compare",
    ):
        assert word in text
    assert str(output / "comparison.html") in text.replace("\n", "")
    page = (output / "comparison.html").read_text()
    assert "Two &lt;ways&gt;" in page
    assert "tools/compare.py" in page
    assert "data:image/png" in page


def test_compare_csv_has_a_row_an_entry_and_a_row_a_run_with_their_metrics(done, real):
    output, _ = done
    summary = json.loads((real.pretraining / "summary.json").read_text())
    rows = {row["entry"]: row for row in table(output / "comparison.csv")}
    assert set(rows) == {"mae", "simmim"}
    assert float(rows["mae"]["kNN [%]: mean"]) == 100 * summary["knn/top1"]
    assert (rows["mae"]["kNN [%]: 95% interval +-"], rows["mae"]["kNN [%]: runs"]) == ("", "1")
    assert rows["simmim"]["linear-probe [%]: mean"] == ""
    single = table(output / "comparison_runs.csv")
    assert [(row["entry"], row["seed"]) for row in single] == [("mae", "0"), ("simmim", "0")]
    assert float(single[0]["held-out loss"]) == summary["val/loss"]
    assert single[0]["parameters"] == str(summary["parameters"])


def test_compare_changes_nothing_in_run_folders(real, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in real.pretraining.parents[1].rglob("*")}
    assert run(real.pretraining, "--output", tmp_path / "out")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in real.pretraining.parents[1].rglob("*")} == before


def test_compare_without_reconstructions_draws_none(real, tmp_path):
    assert run(real.pretraining, "--output", tmp_path, "--no-reconstructions")[0] == 0
    assert "data:image/png" not in (tmp_path / "comparison.html").read_text()


def test_compare_writes_the_table_for_a_paper_in_each_format_that_is_asked_for(real, tmp_path):
    words = ("--format", "latex", "--format", "markdown", "--no-reconstructions", "--output", tmp_path)
    code, text = run(real.pretraining, *words)
    assert code == 0, text
    summary = json.loads((real.pretraining / "summary.json").read_text())
    for name, percent in (("comparison.tex", r"\%"), ("comparison.md", "%")):
        assert str(tmp_path / name) in text.replace("\n", "")
        table = (tmp_path / name).read_text(encoding="utf-8")
        assert f"kNN, {percent}" in table
        assert f"{100 * summary['knn/top1']:.1f}" in table


def test_compare_goes_on_where_pictures_cannot_be_drawn(real, tmp_path):
    gone = tmp_path / "gone-seed0"
    shutil.copytree(real.pretraining, gone)
    shutil.rmtree(gone / "checkpoints")
    assert compare([gone], search=False).notes == ("No reconstructions by gone: no checkpoint is left.",)
    shutil.copytree(real.pretraining / "checkpoints", gone / "checkpoints")
    for path in (gone / "checkpoints").glob("*.pt"):
        path.write_bytes(b"rubbish")
    result = compare([gone], search=False)
    assert result.sheets == ()
    assert result.notes[0].startswith("No reconstructions: ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{tmp}/none"], "does not exist"),
        (["{tmp}"], "no config.yaml"),
        (["{real}", "--output", "{tmp}/file"], "is a file"),
        (["{real}", "--format", "html"], "invalid choice: 'html'"),
        (["{real}", "--output", "{tmp}/page.html"], "page.html: files are written into a folder"),
    ],
)
def test_compare_mistakes_are_named(real, tmp_path, words, named):
    (tmp_path / "file").write_text("")
    code, text = run(*(word.format(tmp=tmp_path, real=real.pretraining) for word in words))
    assert code == 2
    assert text.startswith("error: ")
    assert named in text


def test_names_with_markup_and_signs_break_neither_page_nor_tables(real, tmp_path):
    names = [name.replace("/", "\N{FRACTION SLASH}") for name in NAMES]
    for number, name in enumerate(names):
        write_run(tmp_path / "runs" / name, real.pretraining, {"OPTIMIZER.weight_decay": number})
    result = compare([tmp_path / "runs" / name for name in names], reconstructions=False)
    assert [entry.name for entry in result.entries] == names
    page = write(result, tmp_path / "out", figures=False).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert [row["entry"] for row in table(tmp_path / "out" / "comparison.csv")] == names
    assert [row["entry"] for row in table(tmp_path / "out" / "comparison_runs.csv")] == names
    text = printed(result, 120)
    for name in ("<script>alert(1)", "[bold red]x[", '|b,"c";d', "=1+1", "ü ± 文字"):
        assert name in text
    assert "\x1b" not in text


def test_names_that_are_no_text_break_nothing(real, tmp_path):
    write_run(tmp_path / "runs" / "bad\udcff", real.pretraining)
    result = compare([tmp_path / "runs"], reconstructions=False)
    assert "bad" in write(result, tmp_path / "out", figures=False).read_text()
    assert "bad" in printed(result, 80)


@pytest.mark.parametrize("entries", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_terminal_tables_fit_the_width_and_cut_no_metric(real, tmp_path, entries):
    for number in range(entries):
        name = f"a-long-name-of-a-recipe-{number}"
        for seed in (0, 1):
            keys = {"SEED": seed, "OPTIMIZER.weight_decay": number}
            metrics = {"knn/top1": 0.5 + number / 100 + seed / 50, "images_per_s": 1000.0 + number + seed}
            run_ = write_run(tmp_path / f"{name}-seed{seed}", real.pretraining, keys, metrics)
            write_run(tmp_path / f"probe-{number}-{seed}", real.probe, {"SEED": seed}, {"val/top1": 0.9}, start=run_)
    result = compare([tmp_path], reconstructions=False)
    for width in (80, 120):
        text = printed(result, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for number in range(entries):
            assert f"{51 + number}.0 ± 12.7" in text.replace("\N{FIGURE SPACE}", " ")


def test_terminal_says_the_seeds_of_each_entry_once(real, tmp_path):
    for name, seeds, weight_decay in (("first", (0, 1, 2), 0.1), ("second", (0, 1), 0.2)):
        for seed in seeds:
            keys = {"SEED": seed, "OPTIMIZER.weight_decay": weight_decay}
            write_run(tmp_path / f"{name}-seed{seed}", real.pretraining, keys, {"knn/top1": 0.5 + seed / 50})
    lines = [line.split() for line in printed(compare([tmp_path], reconstructions=False), 100).splitlines()]
    assert [line for line in lines if line[:1] == ["seeds"]] == [["seeds", "3", "2"]]


def test_terminal_marks_the_best_of_a_column_and_none_of_what_does_not_compare(real, tmp_path):
    for name, score, ratio in (("good", 0.9, 0.5), ("poor", 0.4, 0.75)):
        for seed in range(3):
            keys, metrics = {"MASKER.ratio": ratio, "SEED": seed}, {"knn/top1": score + seed * (score - 0.39) / 100}
            write_run(tmp_path / f"{name}-seed{seed}", real.pretraining, keys, metrics)
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
    show(compare([tmp_path], reconstructions=False), console)
    lines = console.file.getvalue().splitlines()
    knn = next(line for line in lines if "kNN, %" in line)
    assert re.search(r"\x1b\[1m *90\.51", knn)
    assert not re.search(r"\x1b\[1m *40\.01", knn)
    loss = next(line for line in lines if "held-out loss" in line)
    assert "\x1b[1m" not in loss
