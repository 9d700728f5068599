"""Components: a target that is no picture, and its prediction, as colours.

Shapes: B batch, C channels of the target, H W pixels, h w entries of the target, M entries of all maps.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

COLOURS = 3
RANGE = (0.01, 0.99)  # quantiles of the target that become the darkest and the brightest value of a colour


def component_colours(target_BChw: Tensor, prediction_BChw: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Target and prediction as pictures (B, H, W, 3) uint8 of that size: red, green and blue are the target's first
    three principal components over all entries, on one scale for both.

    A target with fewer components has no blue, or no green and no blue.
    """
    rows_MC = rearrange(target_BChw.double().cpu(), "b c h w -> (b h w) c")
    mean_C = rows_MC.mean(dim=0)
    _, directions_CC = torch.linalg.eigh((rows_MC - mean_C).T @ (rows_MC - mean_C))
    axes_CK = directions_CC.flip(1)[:, :COLOURS]
    largest_K = axes_CK.abs().argmax(dim=0, keepdim=True)
    axes_CK = axes_CK * axes_CK.gather(0, largest_K).sign()  # either sign is an axis: the largest entry is positive
    low_K, high_K = torch.quantile((rows_MC - mean_C) @ axes_CK, torch.tensor(RANGE, dtype=torch.float64), dim=0)
    pictures = []
    for map_BChw in (target_BChw, prediction_BChw):
        centred_BhwC = rearrange(map_BChw.double().cpu(), "b c h w -> b h w c") - mean_C
        shares_BKhw = rearrange(
            (centred_BhwC @ axes_CK - low_K) / (high_K - low_K).clamp(min=1e-12), "b h w k -> b k h w"
        )
        missing = COLOURS - shares_BKhw.shape[1]
        colours_B3HW = F.interpolate(F.pad(shares_BKhw.clamp(0, 1), (0, 0, 0, 0, 0, missing)), size, mode="nearest")
        pictures.append(rearrange((255 * colours_B3HW).round().byte(), "b c h w -> b h w c").numpy())
    return tuple(pictures)
