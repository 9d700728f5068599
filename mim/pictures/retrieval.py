"""A sheet of query images with the images that are nearest to them.

Shapes: H W pixels of a picture, 3 red, green, blue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mim.pictures.sheets import Columns, Layout, Panel, Row, draw

RIGHT, WRONG, NEUTRAL = (0, 128, 60), (200, 40, 30), (255, 255, 255)
FRAME = 24  # sides of a picture for one width of its frame


@dataclass(frozen=True, slots=True)
class ShownNeighbour:
    """A query or one of its neighbours."""

    rgb_HW3: np.ndarray  # uint8
    caption: str
    right: bool | None = None  # whether it has the class of the query; None where that is unknown


def draw_neighbours(rows: Sequence[Sequence[ShownNeighbour]], title: str, notes: Sequence[str]) -> Tensor:
    """The sheet (H, W, 3) uint8: a row for each query, which comes first, then its neighbours, the nearest first."""
    count = max(len(row) for row in rows) - 1
    columns = (Columns(("query",)), Columns(tuple(str(number) for number in range(1, count + 1)), "nearest images"))
    drawn = []
    for row in rows:
        panels = [Panel(_framed(each), each.caption) for each in row]
        drawn.append(Row((*panels, *[None] * (count + 1 - len(row)))))
    titles = columns if count else columns[:1]
    return draw(Layout(columns=titles, rows=tuple(drawn), title=title, notes=tuple(notes)))


def _framed(neighbour: ShownNeighbour) -> np.ndarray:
    """The picture in a frame that is green where it is right and red where it is wrong."""
    height, width, _ = neighbour.rgb_HW3.shape
    edge = max(1, round(min(height, width) / FRAME))
    colour = NEUTRAL if neighbour.right is None else RIGHT if neighbour.right else WRONG
    framed_HW3 = np.full((height + 2 * edge, width + 2 * edge, 3), colour, dtype=np.uint8)
    framed_HW3[edge:-edge, edge:-edge] = neighbour.rgb_HW3
    return framed_HW3
