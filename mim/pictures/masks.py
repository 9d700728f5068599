"""A sheet of sampled masks, and of how far each hidden pixel lies from the nearest visible one.

Shapes: N sampled masks, C channels, H W pixels, 3 red, green, blue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange, repeat
from torch import Tensor

from mim.ops.intervals import Estimate
from mim.pictures.error_maps import error_colours
from mim.pictures.sheets import Bar, Columns, Layout, Panel, Row, draw

HIDDEN, HIDDEN_OVER, VISIBLE = (43, 47, 54), (128, 128, 128), (243, 241, 236)  # over: on images, which are often dark
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

    @property
    def share(self) -> float:
        """The true share of hidden cells."""
        return 1 - self.visible / self.cells

    @property
    def side(self) -> int:
        """The shorter side of the image in pixels."""
        return min(self.hidden_NHW.shape[1:])


def draw_masks(rows: Sequence[SampledMasks], title: str, images_NCHW: Tensor | None = None, note: str = "") -> Tensor:
    """A labelled sheet (H, W, 3) uint8: a row for each setting, its masks at the left, their distances at the right.

    Args:
        rows: the settings. Their distances share one colour scale.
        images_NCHW: images in [0, 1] below the masks, the same in every row; with 1 or 2 channels the first is shown in
            grey, with more the first three as red, green, blue.

    Raises ValueError where there is no row, where rows differ in their number of masks or in the size of their images,
    and where images do not have that number and size.
    """
    shapes = {tuple(row.hidden_NHW.shape) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"a sheet needs rows of one shape (masks, height, width), not {sorted(shapes)}")
    count, height, width = shapes.pop()
    if images_NCHW is not None and (len(images_NCHW), *images_NCHW.shape[2:]) != (count, height, width):
        raise ValueError(
            f"images of shape {tuple(images_NCHW.shape)} do not fit masks of shape {(count, height, width)}"
        )
    top = max(float(row.distance_NHW.max()) for row in rows)
    masked = "what the encoder sees" if images_NCHW is not None else "sampled masks, hidden cells dark"
    layout = Layout(
        columns=tuple(Columns(("",) * count, name) for name in (masked, "distance to the nearest visible pixel")),
        rows=tuple(Row((*_masked(row, images_NCHW), *_distances(row, top)), _heading(row), apart=True) for row in rows),
        title=title,
        notes=(note,) if note else (),
        bar=Bar("distance in px, on a root scale", top, root=True),
        letters=1.25,
        density=DENSITY,
    )
    return draw(layout)


def _heading(row: SampledMasks) -> str:
    """The setting, what it hides, and its AvgDist."""
    ratio = "" if row.ratio is None else f", ratio {row.ratio:g}"
    hidden = f"{row.share:.1%} hidden ({row.cells - row.visible:,} of {row.cells:,} cells)"
    half = "" if row.avg_dist.half is None else f" ± {row.avg_dist.half:.2f}"
    distance = f"AvgDist {row.avg_dist.mean:.2f}{half} px ({row.avg_dist.mean / row.side:.1%} of {row.side} px)"
    return f"{row.masker}, cell {row.cell} px{ratio}: {hidden}, {distance}"


def _masked(row: SampledMasks, images_NCHW: Tensor | None) -> list[Panel]:
    hidden_NHW1 = row.hidden_NHW.cpu().numpy()[..., None]
    if images_NCHW is None:
        return [Panel(rgb_HW3) for rgb_HW3 in np.where(hidden_NHW1, HIDDEN, VISIBLE).astype(np.uint8)]
    levels_NCHW = (images_NCHW.clamp(0, 1) * 255).round().byte().cpu().numpy()
    if levels_NCHW.shape[1] >= 3:
        levels_NHW3 = rearrange(levels_NCHW[:, :3], "n c h w -> n h w c")
    else:
        levels_NHW3 = repeat(levels_NCHW[:, 0], "n h w -> n h w c", c=3)
    return [Panel(rgb_HW3) for rgb_HW3 in np.where(hidden_NHW1, HIDDEN_OVER, levels_NHW3).astype(np.uint8)]


def _distances(row: SampledMasks, top: float) -> list[Panel]:
    """The farther, the darker; visible pixels are white. Square roots show small cells beside large ones."""
    share_NHW = (row.distance_NHW.cpu() / top).sqrt().masked_fill(~row.hidden_NHW.cpu(), float("nan"))
    return [Panel(error_colours(share_HW, 1.0)) for share_HW in share_NHW]
