"""Components: maps of features as colours, which are their first principal components.

Shapes: B batch, C channels of a map, H W pixels, h w entries of a map, M entries of all maps, K components.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.ops.components import PrincipalComponents

COLOURS = 3
RANGE = (0.01, 0.99)  # quantiles of the entries that become the darkest and the brightest value of a colour


def component_colours(target_BChw: Tensor, prediction_BChw: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Target and prediction as pictures (B, H, W, 3) uint8 of that size: red, green and blue are the target's first
    three principal components over all entries, on one scale for both.

    A target with fewer components has no blue, or no green and no blue.
    """
    components = PrincipalComponents.fit(rearrange(target_BChw, "b c h w -> (b h w) c"), COLOURS)
    maps = [components(rearrange(map_BChw, "b c h w -> b h w c")) for map_BChw in (target_BChw, prediction_BChw)]
    range_2K = colour_range(rearrange(maps[0], "b h w k -> (b h w) k"))
    return tuple(colours_of(map_BhwK, range_2K, size) for map_BhwK in maps)


def colour_range(rows_MK: Tensor) -> Tensor:
    """The values (2, K) that become the darkest and the brightest of each colour."""
    return torch.quantile(rows_MK, torch.tensor(RANGE, dtype=rows_MK.dtype), dim=0)


def colours_of(map_BhwK: Tensor, range_2K: Tensor, size: Sequence[int]) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8 of that size; a map of fewer than three components lacks the last colours."""
    share_BhwK = (map_BhwK - range_2K[0]) / (range_2K[1] - range_2K[0]).clamp(min=1e-12)
    share_BKhw = rearrange(share_BhwK.clamp(0, 1), "b h w k -> b k h w")
    missing = COLOURS - share_BKhw.shape[1]
    colours_B3HW = F.interpolate(F.pad(share_BKhw, (0, 0, 0, 0, 0, missing)), list(size), mode="nearest")
    return rearrange((255 * colours_B3HW).round().byte(), "b c h w -> b h w c").numpy()
