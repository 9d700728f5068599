"""Figures as files: SVG, PDF and PNG, drawn by vl-convert without a browser or a network, and their data as CSV."""

import csv
import io
import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mim.io.files import write_atomically, write_text
from mim.lab.comparison.views.figures.all import Figures
from mim.lab.comparison.views.figures.figure import COLUMN, PAPER, POINTS_PER_INCH, Figure, Look, Spec, as_text

PPI = 300  # of PNG files
KEPT = 64  # drawings in memory
Pdfs = dict[str, dict[str, bytes]]  # by name of the figure, then by name of the look
SNIPPET = "window.vegaEmbed = vegaEmbed;"


def write_figures(figures: Figures, folder: Path) -> Pdfs:
    """Writes each figure to a folder, for one column of a paper and for two, and its data. Returns the PDFs."""
    folder.mkdir(parents=True, exist_ok=True)
    pdfs: Pdfs = {}
    for figure in figures.all:
        write_text(folder / f"{figure.name}.csv", csv_of(figure))
        for look in PAPER:
            svg, stem = svg_of(figures.drawn(figure, look)), file_stem(figure, look)
            pdf = pdf_of(svg)
            pdfs.setdefault(figure.name, {})[look.name] = pdf
            write_text(folder / f"{stem}.svg", in_inches(svg))
            _write_bytes(folder / f"{stem}.pdf", pdf)
            if look is COLUMN:  # a large PNG takes seconds
                _write_bytes(folder / f"{stem}.png", png_of(svg))
    return pdfs


def file_stem(figure: Figure, look: Look) -> str:
    """The name of its files without what follows the point."""
    return figure.name if look is COLUMN else f"{figure.name}-{look.name}"


def svg_of(spec: Spec) -> str:
    """A specification with its rows as SVG."""
    return _svg_of(json.dumps(as_text(spec), allow_nan=False))


@lru_cache(KEPT)
def _svg_of(spec: str) -> str:
    return _converter().vegalite_to_svg(spec).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1)


def in_inches(svg: str) -> str:
    """An SVG whose size is in points, as a program for documents reads it."""
    return re.sub(
        r'\b(width|height)="([\d.]+)"', lambda m: f'{m[1]}="{float(m[2]) / POINTS_PER_INCH:.4g}in"', svg, count=2
    )


def pdf_of(svg: str) -> bytes:
    """An SVG of svg_of as PDF; a unit becomes a point, and fonts are embedded."""
    return _converter().svg_to_pdf(svg)


def png_of(svg: str) -> bytes:
    """An SVG of svg_of as PNG in 300 pixels an inch; a unit becomes a point."""
    return _converter().svg_to_png(svg, scale=1.0, ppi=PPI)


def csv_of(figure: Figure) -> str:
    """The rows of a figure, with the headings that it names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figure.headings.values())
    for row in figure.rows:
        writer.writerow("" if row.get(key) is None else row[key] for key in figure.headings)
    return as_text(text.getvalue())


@cache
def library() -> str:
    """JavaScript that defines vegaEmbed, with Vega and Vega-Lite: about 900 kB, made in one or two seconds."""
    return _converter().javascript_bundle(SNIPPET)


def _converter() -> Any:
    import vl_convert  # 80 MB, and only pages and figures need it

    return vl_convert


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
