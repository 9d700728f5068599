"""A sheet of sampled masks, and of how far each hidden pixel lies from the nearest visible one.

Shapes: N sampled masks, C channels, H W pixels, 3 red, green, blue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mim.ops.intervals import Estimate
from mim.pictures.channels import view_of
from mim.pictures.error_maps import error_colours
from mim.pictures.sheets import Bar, Columns, Layout, Panel, Row, draw

HIDDEN, HIDDEN_OVER, VISIBLE = (43, 47, 54), (128, 128, 128), (243, 241, 236)  # over: on images, which are often dark
LEFT_OUT, LEFT_OUT_OVER = (158, 162, 168), (205, 205, 205)  # hidden, but not predicted
DENSITY = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledMasks:
    """Masks of one setting of a masker."""

    masker: str
    cell: int
    ratio: float | None  # as set in the config; None where the masker has none
    visible: int  # visible cells of an image
    cells: int  # all cells of an image
    avg_dist: Estimate
    hidden_NHW: Tensor  # bool, the masks to draw
    distance_NHW: Tensor  # distance to the nearest visible pixel in pixels, of the same masks
    predicted_NHW: Tensor | None = None  # bool, the hidden cells that are predicted, of the same masks; None: all

    @property
    def share(self) -> float:  # of hidden cells, as they are
        return 1 - self.visible / self.cells

    @property
    def side(self) -> int:  # the shorter one of the image, in pixels
        return min(self.hidden_NHW.shape[1:])


def draw_masks(rows: Sequence[SampledMasks], title: str, images_NCHW: Tensor | None = None, note: str = "") -> Tensor:
    """A labelled sheet (H, W, 3) uint8: a row for each setting, its masks at the left, their distances at the right.

    Images in [0, 1] lie below the masks, the same in every row, as view_of shows them. Raises ValueError where there is
    no row, and where rows or images differ in number or size.
    """
    shapes = {tuple(row.hidden_NHW.shape) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"a sheet needs rows of one shape (masks, height, width), not {sorted(shapes)}")
    count, height, width = shapes.pop()
    if images_NCHW is not None and (len(images_NCHW), *images_NCHW.shape[2:]) != (count, height, width):
        shape = tuple(images_NCHW.shape)
        raise ValueError(f"images of shape {shape} do not fit masks of shape {(count, height, width)}")
    top = max(float(row.distance_NHW.max()) for row in rows)
    apart = any(row.predicted_NHW is not None for row in rows)
    dark = "predicted cells dark, other hidden cells grey" if apart else "hidden cells dark"
    masked = f"sampled masks, {dark}"
    if images_NCHW is not None:
        masked = "what the encoder sees" + ("; of hidden cells, predicted ones are darker" if apart else "")
    columns = tuple(Columns(("",) * count, name) for name in (masked, "distance to the nearest visible pixel"))
    drawn = [Row((*_masked(row, images_NCHW), *_distances(row, top)), _heading(row), apart=True) for row in rows]
    bar, notes = Bar("distance in px, on a root scale", top, root=True), (note,) if note else ()
    options = {"letters": 1.25, "density": DENSITY}
    return draw(Layout(columns=columns, rows=tuple(drawn), title=title, notes=notes, bar=bar, **options))


def _heading(row: SampledMasks) -> str:
    ratio = "" if row.ratio is None else f", ratio {row.ratio:g}"
    hidden = f"{row.share:.1%} hidden ({row.cells - row.visible:,} of {row.cells:,} cells)"
    half = "" if row.avg_dist.half is None else f" ± {row.avg_dist.half:.2f}"
    distance = f"AvgDist {row.avg_dist.mean:.2f}{half} px ({row.avg_dist.mean / row.side:.1%} of {row.side} px)"
    return f"{row.masker}, cell {row.cell} px{ratio}: {hidden}, {distance}"


def _masked(row: SampledMasks, images_NCHW: Tensor | None) -> list[Panel]:
    hidden, left_out, visible = HIDDEN, LEFT_OUT, np.array(VISIBLE)
    if images_NCHW is not None:
        images_NCHW, hidden, left_out = images_NCHW.cpu(), HIDDEN_OVER, LEFT_OUT_OVER
        visible = (view_of(images_NCHW, eight_bit=True)(images_NCHW) * 255).round().numpy()
    predicted_NHW = row.hidden_NHW if row.predicted_NHW is None else row.predicted_NHW
    hidden_NHW3 = np.where(predicted_NHW.cpu().numpy()[..., None], hidden, left_out)
    rgb_NHW3 = np.where(row.hidden_NHW.cpu().numpy()[..., None], hidden_NHW3, visible).astype(np.uint8)
    return [Panel(rgb_HW3) for rgb_HW3 in rgb_NHW3]


def _distances(row: SampledMasks, top: float) -> list[Panel]:
    """The farther, the darker; visible pixels are white. Square roots show small cells beside large ones."""
    share_NHW = (row.distance_NHW.cpu() / top).sqrt().masked_fill(~row.hidden_NHW.cpu(), float("nan"))
    return [Panel(error_colours(share_HW, 1.0)) for share_HW in share_NHW]
