"""The picture of a profile: bars of milliseconds by kind of work, for one side or for several beside each other."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#2f6db3", "#d98032", "#6c9f4b", "#8a6bb1")
THICK, APART = 0.21, 0.20  # inches: of a bar, and between kinds
WIDTH, LETTERS = 9.0, 10.0
LEFT = 0.22  # share of the width, for the names of the kinds
ABREAST, LINE = 3, 0.22  # names of sides: in one line at most, and its inches
WORDS = "#444444"


@dataclass(frozen=True, slots=True)
class Bars:
    """One side: its name, and milliseconds by kind."""

    name: str
    milliseconds: Mapping[str, float]

    @property
    def whole(self) -> float:
        """Milliseconds of all kinds."""
        return sum(self.milliseconds.values())


def profile_picture(title: str, line: str, sides: Sequence[Bars]) -> bytes:
    """A PNG file. title and line: above the bars; sides: all of the same kinds, the first of which stands on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it
    from matplotlib.figure import Figure

    kinds, count = list(sides[0].milliseconds), len(sides)
    tall = len(kinds) * (count * THICK + APART)
    wide = count if count <= ABREAST else 2
    height = tall + 1.0 + (-(-count // wide) - 1) * LINE
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    axes = figure.add_axes((LEFT, 0.1 / height, 0.98 - LEFT, tall / height))
    step = count * THICK + APART
    most = max(value for side in sides for value in side.milliseconds.values()) or 1.0
    for number, side in enumerate(sides):
        places = [place * step + number * THICK for place in range(len(kinds))]
        values = [side.milliseconds[kind] for kind in kinds]
        axes.barh(
            places, values, height=THICK * 0.92, align="edge", color=COLOURS[number % len(COLOURS)],
            label=f"{side.name}: {_number(side.whole)} ms a step",
        )  # fmt: skip
        for place, value in zip(places, values, strict=True):
            text = f"{_number(value)} ms  {value / (side.whole or 1):.0%}"
            axes.text(value + most * 0.01, place + THICK / 2, text, va="center", fontsize=LETTERS - 1, color=WORDS)
    axes.set_yticks([place * step + count * THICK / 2 for place in range(len(kinds))], kinds, fontsize=LETTERS)
    axes.set_ylim(len(kinds) * step - APART / 2, -APART / 2)
    axes.set_xlim(0, most * 1.18)
    axes.set_xticks([])
    for name, spine in axes.spines.items():
        spine.set_visible(name == "left")
    axes.tick_params(axis="y", length=0)
    edge = 0.02
    figure.text(edge, 1 - 0.22 / height, title, fontsize=LETTERS + 2, weight="bold", va="center")
    figure.text(edge, 1 - 0.50 / height, line, fontsize=LETTERS - 2, color=WORDS, va="center")
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(edge - 0.01, 1 - 0.62 / height),
        ncols=wide,
        frameon=False,
        fontsize=LETTERS - 1,
        borderaxespad=0,
    )
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
