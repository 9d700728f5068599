"""Colours of error maps, and where their scale ends.

Shapes: H W pixels, 3 red, green, blue.
"""

import numpy as np
from torch import Tensor

COLOURS, PALEST = "magma_r", 0.04


def error_colours(error_HW: Tensor, top: float) -> np.ndarray:
    """(H, W, 3) uint8: the darker, the larger the error; white where the error is NaN."""
    colours_HW3 = ramp((error_HW / top).clamp(0, 1).nan_to_num(0).numpy())
    colours_HW3[error_HW.isnan().numpy()] = 255
    return colours_HW3


def scale_of(errors: Tensor) -> tuple[float, bool]:
    """A round number that 99% of the finite errors lie below, and whether some lie above it."""
    finite = errors[errors.isfinite()].flatten().double()
    if not len(finite) or finite.max() <= 0:
        return 1.0, False
    most = finite.kthvalue(max(1, round(0.99 * len(finite)))).values.clamp(min=1e-9).item()
    power = 10.0 ** np.floor(np.log10(most))
    top = float(next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= most * (1 - 1e-9)))
    return top, bool(finite.max() > top)


def ramp(share: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of shares of the scale."""
    from matplotlib import colormaps

    return (colormaps[COLOURS](PALEST + (1 - PALEST) * share)[..., :3] * 255).round().astype(np.uint8)
