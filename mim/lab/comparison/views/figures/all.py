"""All figures of a comparison, and what the page needs to draw and save them."""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mim.lab.comparison.result import Comparison
from mim.lab.comparison.views.figures.curves import CurveFigure, absent_text, curve_figures, curve_height
from mim.lab.comparison.views.figures.dot_plots import dot_height, dot_plots
from mim.lab.comparison.views.figures.figure import PAGE, PAPER, Figure, Look, Spec, as_text
from mim.lab.comparison.views.figures.lines import Line


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a comparison: dots and intervals, then curves, and the lines that the latter draw."""

    dots: list[Figure]
    curves: list[CurveFigure]
    lines: list[Line]
    names: list[str]  # of all recipes

    @property
    def all(self) -> list[Figure]:
        """Every figure."""
        return [*self.dots, *(curve.figure for curve in self.curves)]

    def drawn(self, figure: Figure, look: Look) -> Spec:
        """A figure in a look, with its rows."""
        return figure.with_rows(look, self._height(figure, look))

    def page_data(self, pdfs: Mapping[str, Mapping[str, bytes]]) -> str:
        """What figures.js reads, as JSON. pdfs: by name of the figure, then by name of the look."""
        dots = [{**self._shared(figure, pdfs), "rows": figure.rows} for figure in self.dots]
        curves = [
            {
                **self._shared(curve.figure, pdfs),
                "metric": curve.metric,
                "axis": curve.axis,
                "factor": curve.factor,
                "unit": curve.unit,
                "positive": curve.positive,
                "absent": absent_text(curve),
            }
            for curve in self.curves
        ]
        content = {"names": self.names, "figures": [*dots, *curves], "lines": list(map(asdict, self.lines))}
        return json.dumps(as_text(content), allow_nan=False, separators=(",", ":"))

    def _shared(self, figure: Figure, pdfs: Mapping[str, Mapping[str, bytes]]) -> dict[str, object]:
        looks = {look.name: figure.drawn(look, self._height(figure, look)) for look in (PAGE, *PAPER)}
        encoded = {look: b64encode(pdf).decode("ascii") for look, pdf in pdfs.get(figure.name, {}).items()}
        return {
            "name": figure.name,
            "title": figure.title,
            "text": figure.text,
            "headings": figure.headings,
            "looks": looks,
            "pdf": encoded,
        }

    def _height(self, figure: Figure, look: Look) -> float:
        return dot_height(figure, look) if figure in self.dots else curve_height(look)


def figures_of(comparison: Comparison) -> Figures:
    """All figures. Raises ValueError for a curve of an unknown entry."""
    curves, lines = curve_figures(comparison)
    return Figures(dot_plots(comparison), curves, lines, [entry.name for entry in comparison.entries])
