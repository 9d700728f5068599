"""Tables of positions: fixed sine-cosine ones, and the resizing of any of them to another grid or window.

Shapes: N tokens in row-major order, D width, K prefix tokens, L relative positions, H heads.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def sincos_table(grid: tuple[int, int], width: int, num_prefix: int = 0) -> Tensor:
    """Table of shape (1, K + N, D), float32; the rows of prefix tokens are zero.

    The first half of the width encodes the column (x), the second the row (y); each half is a block of sines and
    then one of cosines, not interleaved. Computed in float64. Raises ValueError where 4 does not divide the width.
    Source: MAE, util/pos_embed.py (its `emb_h` is the column). Differs from: grids need not be square.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides, not {width}")
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    axes = (torch.arange(side, dtype=torch.float64) for side in grid)
    row, column = torch.meshgrid(*axes, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    prefix = torch.zeros(num_prefix, width, dtype=torch.float64)
    return torch.cat([prefix, table])[None].float()


def resize_positions(
    table_1ND: Tensor, grid: tuple[int, int], image_size: tuple[int, int] | None, num_prefix: int
) -> Tensor:
    """A position table (1, K + N, D) for another grid, bicubic; the rows of prefix tokens stay, equal grids too.

    image_size: height and width of the images the table was made for, whose aspect tells its grid; None: a square
    grid. A table whose rows fill no such grid is returned as it is.
    Source: MAE, util/pos_embed.py, interpolate_pos_embed. Differs from: grids need not be square.
    """
    height, width = image_size or (1, 1)
    rows = max(table_1ND.shape[1] - num_prefix, 0)
    high = round((rows * height / width) ** 0.5)
    if high < 1 or rows % high or high * width != rows // high * height or (high, rows // high) == grid:
        return table_1ND
    prefix_1KD, patches_1ND = table_1ND[:, :num_prefix], table_1ND[:, num_prefix:]
    map_1Dhw = rearrange(patches_1ND.float(), "b (h w) d -> b d h w", h=high)
    resized_1Dhw = F.interpolate(map_1Dhw, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix_1KD, rearrange(resized_1Dhw, "b d h w -> b (h w) d").to(table_1ND.dtype)], dim=1)


def resize_bias_table(table_LH: Tensor, window: tuple[int, int], grid: tuple[int, int] | None) -> Tensor:
    """A table of relative-position biases, ((2 h - 1) (2 w - 1), heads), for another window; an equal one stays.

    grid: tokens high and wide that the table was made for, which cut its window short where they are fewer; None: the
    window was square. A table that fits no window is returned as it is.
    Old entries are taken to lie at distances in geometric progression that span the new window, and a cubic spline
    goes through them; a smaller window is cut out of the middle of a larger one.
    Source: SimMIM, utils.py, remap_pretrained_keys_swin. Differs from: windows need not be square.
    """
    high, wide = grid or (len(table_LH), len(table_LH))
    shapes = ((min(side, high), min(side, wide)) for side in range(1, max(high, wide) + 1))
    old = next((shape for shape in shapes if (2 * shape[0] - 1) * (2 * shape[1] - 1) == len(table_LH)), None)
    if old is None or old == window or 1 in old or not table_LH.shape[1]:
        return table_LH
    from scipy.interpolate import RectBivariateSpline  # imported where it is used: most of a second

    maps_HYX = rearrange(table_LH.double().numpy(), "(y x) heads -> heads y x", y=2 * old[0] - 1)
    y, x = (_distances(before - 1, after - 1) for before, after in zip(old, window, strict=True))
    new_y, new_x = (np.arange(1 - side, side) for side in window)
    order = {"kx": min(3, len(y) - 1), "ky": min(3, len(x) - 1)}
    resized_HYX = np.stack([RectBivariateSpline(y, x, map_YX, **order)(new_y, new_x) for map_YX in maps_HYX])
    return torch.from_numpy(rearrange(resized_HYX, "heads y x -> (y x) heads")).to(table_LH.dtype)


def _distances(steps: int, reach: int) -> np.ndarray:
    """Places of 2 steps + 1 old entries: 0, +-1, +-(1 + q), ...; q, from 1.01 to 1.5, puts the last at reach."""
    from scipy.optimize import brentq

    def excess(q: float) -> float:
        return (q**steps - 1) / (q - 1) - reach

    low, high = 1.01, 1.5
    q = low if excess(low) >= 0 else high if excess(high) <= 0 else brentq(excess, low, high)
    positive = np.cumsum(q ** np.arange(steps))
    return np.concatenate([-positive[::-1], [0], positive])
