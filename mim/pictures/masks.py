"""A sheet of sampled masks, and of how far each hidden pixel lies from the nearest visible one.

Shapes: N sampled masks, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from mim.ops.intervals import Estimate
from mim.pictures.canvas import pixels

# inches on a sheet; LONG, LONGEST: longer side of a mask, of few; PANEL: least width of all masks of a row, TALL: least
# height of a row, APART: more between groups of rows, TICK: least between two numbers of the colour bar
LONG, LONGEST, PANEL, TALL, GAP, APART, BETWEEN, EDGE, TICK = 0.86, 1.5, 2.2, 0.55, 0.07, 0.12, 0.25, 0.15, 0.18
LABEL, FIGURE, TOP, HEADING, BAR, BELOW = 1.55, 0.92, 0.36, 0.24, 0.09, 0.62
HIDDEN, HIDDEN_OVER, VISIBLE, FRAME, WORDS = "#2b2f36", "#808080", "#f3f1ec", "#8a8a8a", "#333333"
COLOURS, PALEST, DPI = "magma_r", 0.08, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledMasks:
    """Masks of one setting of a masker.

    masker: its name; cell: side in pixels; ratio: as asked for, None where the masker has none; visible, cells: of an
    image; avg_dist: in pixels; hidden_NHW: bool, distance_NHW: pixels to the nearest visible pixel, both of the masks
    to be shown.
    """

    masker: str
    cell: int
    ratio: float | None
    visible: int
    cells: int
    avg_dist: Estimate
    hidden_NHW: Tensor
    distance_NHW: Tensor

    @property
    def share(self) -> float:
        """The true share of hidden cells."""
        return 1 - self.visible / self.cells

    @property
    def side(self) -> int:
        """The shorter side of the image in pixels."""
        return min(self.hidden_NHW.shape[1:])


def draw_masks(rows: Sequence[SampledMasks], title: str, images_NCHW: Tensor | None = None, note: str = "") -> Tensor:
    """A labelled sheet (H, W, 3) uint8: a row a setting; at the left its masks, at the right their distances.

    images_NCHW: images in [0, 1] to lay the masks over, the same in every row; of 1 or 2 channels the first is shown
    in grey, of others the first three as red, green, blue. note: stands below the masks. Distances have one colour
    scale in all rows. Raises ValueError where there is no row, where rows differ in their number of masks or in the
    size of their images, and where images are not of that number and size.
    """
    from matplotlib.figure import Figure

    shapes = {tuple(row.hidden_NHW.shape) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"a sheet needs rows of one shape (masks, height, width), not {sorted(shapes)}")
    shape = shapes.pop()
    if images_NCHW is not None and (len(images_NCHW), *images_NCHW.shape[2:]) != shape:
        raise ValueError(f"images of shape {tuple(images_NCHW.shape)} do not fit masks of shape {shape}")
    sheet = _Layout([row.cell for row in rows], *shape)
    figure = Figure(figsize=(sheet.wide, sheet.high), dpi=DPI, facecolor="white")
    colouring = _colouring(max(float(row.distance_NHW.max()) for row in rows))
    for number, row in enumerate(rows):
        _write_row(figure, sheet, row, number, named=len({row.masker for row in rows}) > 1)
        for place in range(sheet.count):
            masks, distances = (figure.add_axes(sheet.box(number, place, panel)) for panel in (0, 1))
            masks.imshow(_masked(row, place, images_NCHW), interpolation="auto")
            hidden = np.ma.masked_equal(row.distance_NHW[place].cpu().numpy(), 0)
            shown = distances.imshow(hidden, interpolation="auto", **colouring)
            for axes in (masks, distances):
                _frame(axes)
    _write_headings(figure, sheet, title, note, over=images_NCHW is not None)
    _draw_bar(figure, sheet, shown)
    return pixels(figure)


class _Layout:
    """Where things stand on a sheet: inches from its lower left corner, and boxes as shares of it.

    cells: of each row; rows of one cell side stand together.
    """

    def __init__(self, cells: list[int], count: int, height: int, width: int):
        self.count = count
        longer = min(max(LONG, ((PANEL + GAP) / count - GAP) * max(height, width) / width), LONGEST)
        self.size = longer * width / max(height, width), longer * height / max(height, width)
        self.panel = max(count * (self.size[0] + GAP) - GAP, PANEL)
        self.down = [0.0]
        grouped = len(set(cells)) < len(cells)
        for above, below in pairwise(cells):
            self.down.append(self.down[-1] + max(self.size[1], TALL) + GAP + APART * (grouped and above != below))
        self.wide = EDGE + LABEL + 2 * self.panel + BETWEEN + FIGURE + EDGE
        self.high = TOP + HEADING + self.down[-1] + max(self.size[1], TALL) + BELOW

    def left(self, panel: int) -> float:
        """Of the masks (0), of the distances (1), and of the figures behind them (2)."""
        return EDGE + LABEL + min(panel, 1) * (self.panel + BETWEEN) + (self.panel + 0.12 if panel == 2 else 0)

    def top(self, row: int) -> float:
        return self.high - TOP - HEADING - self.down[row]

    def box(self, row: int, place: int, panel: int) -> tuple[float, float, float, float]:
        left, bottom = self.left(panel) + place * (self.size[0] + GAP), self.top(row) - self.size[1]
        return left / self.wide, bottom / self.high, self.size[0] / self.wide, self.size[1] / self.high

    def bar(self) -> tuple[float, float, float, float]:
        return self.left(1) / self.wide, (BELOW - 0.14 - BAR) / self.high, self.panel / self.wide, BAR / self.high

    def write(self, figure: Any, left: float, top: float, words: str, size: float, bold: bool = False) -> None:
        """Words by the upper left corner of their first line, in inches."""
        style = {"fontsize": size, "va": "top", "ha": "left", "parse_math": False}
        style |= {"fontweight": "bold"} if bold else {"color": WORDS}
        figure.text(left / self.wide, top / self.high, words, **style)


def _write_row(figure: Any, sheet: _Layout, row: SampledMasks, number: int, named: bool) -> None:
    """The setting at the left of a row, and its AvgDist at the right."""
    top = sheet.top(number)
    setting = f"cell {row.cell} px" + ("" if row.ratio is None else f", ratio {row.ratio:g}")
    hidden = f"{row.share:.1%} hidden:\n{row.cells - row.visible:,} of {row.cells:,} cells"
    heading, lines = (row.masker, f"{setting}\n{hidden}") if named else (setting, hidden)
    sheet.write(figure, EDGE, top, heading, 8, bold=True)
    sheet.write(figure, EDGE, top - 0.17, lines, 6.8)
    half = "" if row.avg_dist.half is None else f"± {row.avg_dist.half:.2f} px\n"
    sheet.write(figure, sheet.left(2), top, f"{row.avg_dist.mean:.2f} px", 8, bold=True)
    sheet.write(figure, sheet.left(2), top - 0.17, f"{half}{row.avg_dist.mean / row.side:.1%} of {row.side} px", 6.8)


def _write_headings(figure: Any, sheet: _Layout, title: str, note: str, over: bool) -> None:
    sheet.write(figure, EDGE, sheet.high - 0.13, title, 9.5, bold=True)
    names = (
        "what the encoder sees" if over else "sampled masks, hidden cells dark",
        "distance to the nearest visible pixel",
        "AvgDist",
    )
    for panel, name in enumerate(names):
        sheet.write(figure, sheet.left(panel), sheet.high - TOP - 0.06, name, 7.5)
    sheet.write(figure, sheet.left(0), BELOW - 0.14, note, 6.5)


def _masked(row: SampledMasks, place: int, images_NCHW: Tensor | None) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    from matplotlib.colors import to_rgb

    shown_HW3, colour = np.asarray(to_rgb(VISIBLE)), HIDDEN
    if images_NCHW is not None:
        image_CHW = images_NCHW[place]
        chosen_CHW = image_CHW[:3] if len(image_CHW) >= 3 else image_CHW[:1].expand(3, -1, -1)
        shown_HW3 = rearrange(chosen_CHW, "c h w -> h w c").clamp(0, 1).cpu().numpy()
        colour = HIDDEN_OVER  # images are often dark
    return np.where(row.hidden_NHW[place].cpu().numpy()[..., None], np.asarray(to_rgb(colour)), shown_HW3)


def _colouring(most: float) -> dict[str, Any]:
    """Paler is nearer; visible pixels, which are left out, are white. The root shows small cells beside large ones."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, PowerNorm

    colours = ListedColormap(colormaps[COLOURS](np.linspace(PALEST, 1, 256))).with_extremes(bad="white")
    return {"cmap": colours, "norm": PowerNorm(0.5, 0, most)}


def _draw_bar(figure: Any, sheet: _Layout, shown: Any) -> None:
    bar = figure.colorbar(shown, cax=figure.add_axes(sheet.bar()), orientation="horizontal")
    ticks = [0]
    for step in (step * 10**power for power in range(5) for step in (1, 2, 5)):
        if step <= shown.norm.vmax and sheet.panel * float(shown.norm(step) - shown.norm(ticks[-1])) >= TICK:
            ticks.append(step)
    bar.set_ticks(ticks)
    bar.ax.minorticks_off()
    bar.ax.xaxis.set_major_formatter("{x:.0f}")
    bar.set_label("px, on a root scale; visible pixels are white", fontsize=6.5, labelpad=2)
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1.5)
    bar.outline.set_linewidth(0.4)


def _frame(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color=FRAME)
