"""Figures for papers: what their files hold, how wide they are, and what the page's buttons save."""

import csv
import io
import re
from dataclasses import replace

import pytest
from comparisons import NAMES, SEEDS, comparison
from PIL import Image

from mim.lab.comparison.result import Curve
from mim.lab.comparison.views.figures.all import figures_of
from mim.lab.comparison.views.figures.curves import curve_figures
from mim.lab.comparison.views.figures.files import csv_of, write_figures
from mim.lab.comparison.views.figures.lines import lines_of
from mim.lab.comparison.views.page import render

WIDTHS = {"": 3.3, "-wide": 7.0}  # inches, by what follows the name of the figure
PAUSE_MS = 150  # between two downloads: Chromium drops those of a page beyond ten a second, without an error


def small():
    """A comparison of one metric over one axis, and of one column: two figures."""
    result = comparison()
    curves = tuple(
        replace(each, at={"images_seen": each.at["images_seen"]}) for each in result.curves if each.metric == "val/loss"
    )
    tests = tuple(test for test in result.tests if test.column == "knn/top1")
    return replace(result, columns=result.columns[:1], curves=curves, tests=tests)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of figures, and the PDFs for the page."""
    folder = tmp_path_factory.mktemp("figures")
    return folder, write_figures(figures_of(small()), folder)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def means(lines):
    return [line for line in lines if line.seed == "mean"]


def test_names_say_metric_and_axis():
    curves, _ = curve_figures(comparison())
    assert [curve.figure.name for curve in curves] == [
        f"{metric}-over-{axis}" for metric in ("knn-top1", "val-loss") for axis in ("images-seen", "flops", "seconds")
    ]
    assert [figure.name for figure in figures_of(comparison()).dots] == ["knn-dots", "fine-tuning-dots"]


def test_csv_of_curves_has_every_value_the_mean_and_its_ends():
    result = small()
    rows = rows_of(csv_of(figures_of(result).curves[0].figure))
    seeds = {curve.seed: curve for curve in result.curves if curve.entry == "MAE"}
    for seed in SEEDS:
        ours = [row for row in rows if (row["recipe"], row["seed"]) == ("MAE", str(seed))]
        assert [float(row["Held-out loss"]) for row in ours] == pytest.approx(seeds[seed].values, rel=1e-6)
        assert [float(row["images seen"]) for row in ours] == pytest.approx(seeds[seed].at["images_seen"])
    last = [curve.values[-1] for curve in seeds.values()]
    mean = [row for row in rows if (row["recipe"], row["seed"]) == ("MAE", "mean")][-1]
    assert float(mean["Held-out loss"]) == pytest.approx(sum(last) / len(last), rel=1e-6)
    ends = [float(mean["lowest seed"]), float(mean["highest seed"])]
    assert ends == pytest.approx([min(last), max(last)], rel=1e-6)


def test_csv_of_dots_has_means_intervals_and_seeds():
    result = small()
    rows = rows_of(csv_of(figures_of(result).dots[0]))
    for entry in result.entries:
        estimate = entry.metrics["knn/top1"]
        mean, *seeds = [row for row in rows if row["recipe"] == entry.name]
        assert mean["seed"] == "mean"
        numbers = [float(mean[key]) for key in ("kNN, %", "95% interval from", "to")]
        assert numbers == [estimate.mean, estimate.mean - estimate.half, estimate.mean + estimate.half]
        assert [float(row["kNN, %"]) for row in seeds] == list(entry.values["knn/top1"])


def test_mean_of_curves_of_unequal_length_is_where_all_have_values():
    full, short = (
        Curve("MAE", 0, "val/loss", {"images_seen": (0.0, 1.0, 2.0, 3.0)}, (8.0, 4.0, 2.0, 1.0)),
        Curve("MAE", 1, "val/loss", {"images_seen": (0.0, 2.0)}, (6.0, 2.0)),
    )
    (mean,) = means(lines_of(replace(comparison(NAMES[:1]), curves=(full, short))))
    assert mean.at == {"images_seen": (0.0, 1.0, 2.0)}
    assert (mean.values, mean.lowest, mean.highest) == ((7.0, 4.0, 2.0), (6.0, 4.0, 2.0), (8.0, 4.0, 2.0))


def test_mean_of_one_seed_has_no_ends():
    lines = means(lines_of(comparison(seeds=(0,))))
    assert len(lines) == 2 * len(NAMES)
    assert {(line.lowest, line.highest) for line in lines} == {(None, None)}
    assert all(len(line.at) == 3 for line in lines)


@pytest.mark.slow
def test_files_are_as_wide_as_one_column_or_two(written):
    folder, pdfs = written
    for figure in figures_of(small()).all:
        assert (folder / f"{figure.name}.csv").read_text() == csv_of(figure)
        for suffix, inches in WIDTHS.items():
            svg = (folder / f"{figure.name}{suffix}.svg").read_text()
            assert float(re.search(r'width="([\d.]+)in"', svg)[1]) == pytest.approx(inches)
            assert set(re.findall(r'font-size="([\d.]+)px"', svg)) == {"8"}
            pdf = (folder / f"{figure.name}{suffix}.pdf").read_bytes()
            assert pdf.startswith(b"%PDF")
            box = re.search(rb"/MediaBox \[0 0 ([\d.]+)", pdf)
            assert float(box[1]) == pytest.approx(72 * inches, abs=0.1)
            assert pdfs[figure.name][suffix.lstrip("-") or "column"] == pdf
        assert Image.open(folder / f"{figure.name}.png").width == pytest.approx(990, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_buttons_of_the_page_save_figures(chromium, written, tmp_path, width):
    _, pdfs = written
    file = tmp_path / "comparison.html"
    file.write_text(render(small(), pdfs), encoding="utf-8")
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True, accept_downloads=True)
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(file.as_uri())
    page.locator("#chart svg").wait_for()
    saved = {}
    for bar, figure in zip(page.locator(".save").all(), figures_of(small()).all, strict=True):
        for look, suffix in (("column", ""), ("wide", "-wide")):
            bar.locator("select").select_option(look)
            for kind in ("SVG", "PDF", "PNG", "CSV"):
                page.wait_for_timeout(PAUSE_MS)
                with page.expect_download() as download:
                    bar.get_by_role("button", name=kind, exact=True).click()
                name = download.value.suggested_filename
                assert name == f"{figure.name}{'' if kind == 'CSV' else suffix}.{kind.lower()}"
                download.value.save_as(tmp_path / name)
                saved[name] = (tmp_path / name).read_bytes()
            assert saved[f"{figure.name}{suffix}.pdf"] == pdfs[figure.name][look]
            svg = saved[f"{figure.name}{suffix}.svg"].decode()
            assert f'width="{WIDTHS[suffix]:.3f}in"' in svg
            assert "var(--" not in svg
            pixels = Image.open(io.BytesIO(saved[f"{figure.name}{suffix}.png"])).width
            assert pixels == pytest.approx(300 * WIDTHS[suffix], abs=2)
        ours, theirs = rows_of(saved[f"{figure.name}.csv"].decode()), rows_of(csv_of(figure))
        assert [[_value(text) for text in row.values()] for row in ours] == [
            [_value(text) for text in row.values()] for row in theirs
        ]
    context.close()
    assert problems == []


def _value(text):
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.slow
def test_saved_figure_holds_the_recipes_that_are_chosen(chromium, tmp_path):
    file = tmp_path / "comparison.html"
    file.write_text(render(small()), encoding="utf-8")
    context = chromium.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.locator("#chart svg").wait_for()
    page.get_by_role("button", name="SimMIM", exact=True).click()
    bar = page.locator("#curves .save")
    assert bar.get_by_role("button", name="PDF").count() == 0
    with page.expect_download() as download:
        bar.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "data.csv")
    assert {row["recipe"] for row in rows_of((tmp_path / "data.csv").read_text())} == {NAMES[0], NAMES[2]}
    context.close()
