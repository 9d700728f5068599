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

    figure = Figure(figsize=(3.0 * len(families) + 0.6, 3.6 + 0.18 * len(notes)), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for panel, (family, curves) in zip(axes, families.items(), strict=True):
        panel.axhline(clean, color=LINE, linestyle="--", linewidth=1, label="clean images")
        panel.axhline(chance, color=LINE, linestyle=":", linewidth=1, label="chance")
        for colour, (name, accuracy_S) in zip(COLOURS, curves.items(), strict=False):
            values = [clean, *accuracy_S]
            panel.plot([0, *severities], values, color=colour, marker="o", markersize=3.5, label=name.replace("_", " "))
        panel.set(title=family, xlabel="severity", xticks=[0, *severities], ylim=(0, 1))
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        panel.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[0].set_ylabel("accuracy (top-1)")
    figure.suptitle(title, fontsize=10, parse_math=False)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=7.5, parse_math=False)
    return pixels(figure)
