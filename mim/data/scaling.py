"""Scaling: stored pixel values become those that a model sees, before they are normalised (DATA.scale).

Shapes: C channels, H W pixels.
"""

import numpy as np
import torch

from mim.data.settings import Scale
from mim.data.sources.base import Stored
from mim.data.transforms import to_tensor

LOW, HIGH = 1, 99  # percentiles


def scaled(stored: Stored, scale: Scale, nodata: float | None = None) -> Stored:
    """An image under DATA.scale: (C, H, W) float32, or with `type` as it is, because Preprocess scales it by its type.

    Args:
        stored: an image in its stored type.
        scale: DATA.scale.
        nodata: the value of missing pixels, which `percentile` leaves out; None for none.
    """
    if scale == "type":
        return stored
    image_CHW = to_tensor(stored).float()
    if scale == "percentile":
        return torch.from_numpy(np.stack([_stretched(plane_HW, nodata) for plane_HW in image_CHW.numpy()]))
    low, high = scale
    return (image_CHW - low) / (high - low)


def _stretched(plane_HW: np.ndarray, nodata: float | None) -> np.ndarray:
    """A channel with its 1st percentile at 0 and its 99th at 1, clipped.

    Where the two are equal, as with few bright pixels on a black ground, its least and largest value take their place;
    a constant channel is 0.
    """
    valid_N = plane_HW.reshape(-1)
    if nodata is not None:
        valid_N = valid_N[valid_N != np.float32(nodata)]
    if not len(valid_N):
        return np.zeros_like(plane_HW)
    low, high = np.percentile(valid_N, (LOW, HIGH))
    if low == high:
        low, high = float(valid_N.min()), float(valid_N.max())
    if low == high:
        return np.zeros_like(plane_HW)
    return ((plane_HW.astype(np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32)
