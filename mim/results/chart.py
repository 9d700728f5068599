"""Chart: curves of a run as SVG in the colour of the text around it, drawn by matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

COLOURS = ("#3d85d9", "#d9702b", "#8a6fd1", "#5f9e4a")  # that stand out on white and on black
TEXT = "#010203"  # stands for the colour of the text around the chart
PANEL = (4.4, 2.1)  # inches
MARKED = 30  # points, below which each is marked


class Curve(NamedTuple):
    """A metric at each of some numbers of images seen."""

    images_seen: np.ndarray  # (N,) int64
    values: np.ndarray  # (N,) float64


def draw_chart(panels: Sequence[Mapping[str, Curve]]) -> str:
    """An <svg> element with a panel for each mapping from the name of a curve to the curve; empty without any."""
    if not panels:
        return ""
    # slow to import; a Figure of its own leaves alone what a notebook draws with pyplot
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mim", "font.size": 8}
    for part in ("text.color", "xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor"):
        settings[part] = TEXT
    with rc_context(settings):
        figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
        for axes, curves in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
                marker = "o" if len(curve.values) < MARKED else ""
                axes.plot(curve.images_seen, curve.values, color=colour, marker=marker, markersize=2.5, label=name)
            axes.set_xlabel("images seen")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    return text.replace("<svg", '<svg style="max-width: 100%; height: auto"', 1)
