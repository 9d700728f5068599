"""Scaling: stored pixel values become those that a model sees, before they are normalised (DATA.scale, DATA.nodata).

Shapes: C channels, H W pixels.
"""

import numpy as np
import torch

from mim.data.settings import DataSettings
from mim.data.sources.base import Stored
from mim.data.transforms import to_tensor, to_unit

LOW, HIGH = 1, 99  # percentiles


def scaled(stored: Stored, settings: DataSettings) -> Stored:
    """An image under DATA.scale, in which pixels of the value DATA.nodata are NaN: (C, H, W) float32.

    Under the scale `type` and without nodata it is as it is stored, because Preprocess scales it by its type.
    """
    if is_unchanged(settings):
        return stored
    stored_CHW = to_tensor(stored)
    image_CHW = stored_CHW.float()
    if settings.nodata_value is None:
        missing_CHW = torch.zeros_like(image_CHW, dtype=torch.bool)
    else:
        missing_CHW = image_CHW == torch.tensor(settings.nodata_value, dtype=torch.float32)
    if settings.scale == "type":
        return to_unit(stored_CHW).masked_fill(missing_CHW, torch.nan)
    image_CHW = image_CHW.masked_fill(missing_CHW, torch.nan)
    if settings.scale == "percentile":
        return torch.from_numpy(np.stack([_stretched(plane_HW) for plane_HW in image_CHW.numpy()]))
    low, high = settings.scale
    return (image_CHW - low) / (high - low)


def is_unchanged(settings: DataSettings) -> bool:
    """Whether `scaled` leaves images as they are stored."""
    return settings.scale == "type" and settings.nodata_value is None


def _stretched(plane_HW: np.ndarray) -> np.ndarray:
    """A channel with its 1st percentile at 0 and its 99th at 1, clipped; NaN stays and does not count.

    Where the two are equal, as with few bright pixels on a black ground, its least and largest value take their place;
    a constant channel is 0.
    """
    valid_N = plane_HW[~np.isnan(plane_HW)]
    if not len(valid_N):
        return plane_HW
    low, high = np.percentile(valid_N, (LOW, HIGH))
    if low == high:
        low, high = float(valid_N.min()), float(valid_N.max())
    if low == high:
        return np.where(np.isnan(plane_HW), plane_HW, 0)
    return ((plane_HW.astype(np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32)
