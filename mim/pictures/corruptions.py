"""Curves of accuracy under corruptions.

Shapes: H W pixels, S severities.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mim.pictures.canvas import pixels

COLOURS = ("#1f6fb4", "#c8551b", "#2a8a4a", "#8a4fb0")
LINE = "#7a7a7a"


def draw_corruption_curves(
    families: Mapping[str, Mapping[str, Sequence[float]]],
    severities: Sequence[int],
    clean: float,
    chance: float,
    title: str,
    notes: Sequence[str] = (),
) -> Tensor:
    """(H, W, 3) uint8: a panel a family, a curve a corruption; all begin at the accuracy of clean images, at 0.

    Args:
        families: by family and corruption, the accuracy at each severity.
        severities: from 1, in rising order.
        clean: accuracy of clean images.
        chance: accuracy of a guess.
        title: above the panels.
        notes: lines below them.
    """
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    highest = max(clean, *(value for curves in families.values() for each in curves.values() for value in each))
    figure = Figure(figsize=(2.9 * len(families) + 0.6, 3.7 + 0.18 * len(notes)), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for panel, (family, curves) in zip(axes, families.items(), strict=True):
        lines = [
            panel.plot([0, *severities], [clean, *accuracy_S], color=colour, marker="o", markersize=3.5)[0]
            for colour, accuracy_S in zip(COLOURS, curves.values(), strict=False)
        ]
        levels = [
            panel.axhline(level, color=LINE, linestyle=style, linewidth=1, zorder=1)
            for level, style in ((clean, "--"), (chance, ":"))
        ]
        names = [name.replace("_", " ") for name in curves]
        if panel is axes[0]:
            lines, names = [*lines, *levels], [*names, "clean images", "chance"]
        panel.set(title=family, xlabel="severity", xticks=[0, *severities], ylim=(0, min(1.0, 1.1 * highest + 0.02)))
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        panel.legend(lines, names, fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    axes[0].set_ylabel("accuracy (top-1)")
    figure.suptitle(title, fontsize=10, parse_math=False)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=7.5, parse_math=False)
    return pixels(figure)
