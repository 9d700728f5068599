"""The pixels of a matplotlib figure."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(figure: "Figure") -> Tensor:
    """Draws the figure and returns (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
