"""Figures as files: SVG, PDF and PNG, drawn by vl-convert without a browser or a network, and their data as CSV."""

import csv
import io
import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from mim.io.files import write_atomically, write_text
from mim.lab.comparison.views.figures.all import Figures
from mim.lab.comparison.views.figures.figure import COLUMN, PAPER, POINTS_PER_INCH, Figure, Look, Spec, as_text

PPI = 300  # of PNG files
REMEMBERED = 64  # drawings in memory
ATTEMPTS = 3  # of the program that draws, which V8 may end
PROGRAM = Path(__file__).with_name("draw.py")
Pdfs = dict[str, dict[str, bytes]]  # by name of the figure, then by name of the look
SNIPPET = "window.vegaEmbed = vegaEmbed;"


class Drawing(NamedTuple):
    """A figure as it was drawn; a unit becomes a point, and fonts are embedded in the PDF."""

    svg: str
    pdf: bytes = b""
    png: bytes = b""


def write_figures(figures: Figures, folder: Path) -> Pdfs:
    """Writes each figure to a folder, for one column of a paper and for two, and its data. Returns the PDFs.

    Raises OSError where they cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pdfs: Pdfs = {}
    for figure in figures.all:
        write_text(folder / f"{figure.name}.csv", csv_of(figure))
    for look in PAPER:
        kinds = ("pdf", "png") if look is COLUMN else ("pdf",)  # a large PNG takes seconds
        drawings = drawings_of([figures.drawn(figure, look) for figure in figures.all], kinds)
        for figure, drawing in zip(figures.all, drawings, strict=True):
            stem = file_stem(figure, look)
            pdfs.setdefault(figure.name, {})[look.name] = drawing.pdf
            write_text(folder / f"{stem}.svg", in_inches(drawing.svg))
            _write_bytes(folder / f"{stem}.pdf", drawing.pdf)
            if drawing.png:
                _write_bytes(folder / f"{stem}.png", drawing.png)
    return pdfs


def file_stem(figure: Figure, look: Look) -> str:
    """The name of its files without what follows the point."""
    return figure.name if look is COLUMN else f"{figure.name}-{look.name}"


def drawings_of(specs: Sequence[Spec], kinds: Sequence[str] = ()) -> tuple[Drawing, ...]:
    """Specifications with their rows as SVG, and as kinds says also as `pdf` and `png`.

    Raises OSError where they cannot be drawn.
    """
    return _drawings(tuple(json.dumps(as_text(spec), allow_nan=False) for spec in specs), tuple(kinds))


@lru_cache(REMEMBERED)
def _drawings(specs: tuple[str, ...], kinds: tuple[str, ...]) -> tuple[Drawing, ...]:
    figures = _ask(list(map(json.loads, specs)), kinds)["figures"] if specs else []
    return tuple(
        Drawing(each["svg"], b64decode(each.get("pdf", "")), b64decode(each.get("png", ""))) for each in figures
    )


def in_inches(svg: str) -> str:
    """An SVG whose size is in points, as a program for documents reads it."""
    return re.sub(
        r'\b(width|height)="([\d.]+)"', lambda m: f'{m[1]}="{float(m[2]) / POINTS_PER_INCH:.4g}in"', svg, count=2
    )


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
    return _ask([], snippet=SNIPPET)["library"]


def _ask(figures: list[Spec], kinds: Sequence[str] = (), snippet: str = "") -> dict:
    """The answer of draw.py. Raises OSError where it gives none."""
    request = json.dumps({"figures": figures, "kinds": kinds, "ppi": PPI, "snippet": snippet})
    for _ in range(ATTEMPTS):
        ended = subprocess.run(
            [sys.executable, str(PROGRAM)], input=request, capture_output=True, encoding="utf-8", check=False
        )
        if ended.returncode == 0:
            return json.loads(ended.stdout)
    last = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise OSError(f"figures cannot be drawn: vl-convert ended with exit code {ended.returncode} ({last})")


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
