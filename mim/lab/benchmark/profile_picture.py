"""The picture of profiles: bars of milliseconds by kernel class, side by side for each contender."""

import io
from collections.abc import Mapping

from mim.lab.console import number

WIDTH, BAR = 9.0, 0.22  # inches
COLOURS = ("#2f6db3", "#d98032", "#6c9f4b", "#8a6bb1")


def profile_picture(title: str, subtitle: str, contenders: Mapping[str, Mapping[str, float]]) -> bytes:
    """A PNG file. contenders: milliseconds by kernel class, by the contender's name; all have the same classes."""
    from matplotlib.figure import Figure  # slow to import

    classes = list(next(iter(contenders.values())))
    thickness = 0.8 / len(contenders)
    height = 1.2 + len(classes) * BAR * (len(contenders) + 1)
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (name, milliseconds) in enumerate(contenders.items()):
        total = sum(milliseconds.values())
        bars = axes.barh(
            [row + index * thickness for row in range(len(classes))],
            list(milliseconds.values()),
            height=0.92 * thickness,
            color=COLOURS[index % len(COLOURS)],
            label=f"{name}: {number(total, 3)} ms per step",
        )
        texts = [f"{number(value, 3)} ms  {value / (total or 1):.0%}" for value in milliseconds.values()]
        axes.bar_label(bars, texts, padding=3, fontsize=9)
    axes.set_yticks([row + 0.4 - thickness / 2 for row in range(len(classes))], classes)
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.01)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(subtitle, loc="left", fontsize=8, x=0)
    figure.suptitle(title, fontsize=12, weight="bold", x=0.01, ha="left")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()
