"""A confusion matrix as a picture.

Shapes: K classes, H W pixels.
"""

import numpy as np
from torch import Tensor

from mim.pictures.canvas import pixels

NAMED = 30  # classes up to which rows carry names, and cells numbers
LETTERS = 30  # of a name, at most


def draw_confusion(confusion_KK: Tensor, names: tuple[str, ...], title: str) -> Tensor:
    """(H, W, 3) uint8: a row for each true class, a column for each predicted class; colours are shares of the row.

    Up to 30 classes are named, with the count in each cell that is not empty.
    """
    from matplotlib.figure import Figure

    counts = confusion_KK.numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(names) <= NAMED
    names = tuple(name if len(name) <= LETTERS else name[: LETTERS - 1] + "…" for name in names)
    side = max(3.4, 0.42 * len(names)) if named else 7.0
    longest = max(map(len, names)) if named else 4
    figure = Figure(figsize=(side + 1.2 + 0.07 * longest, side + 0.8 + 0.07 * longest), dpi=120, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(title.replace(": ", ":\n"), fontsize=10, parse_math=False)
    if named:
        axes.set_xticks(range(len(names)), names, rotation=90 if longest > 2 else 0, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        size = 8 if counts.max() < 1000 else 6.5
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    return pixels(figure)
