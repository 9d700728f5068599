"""One image of each type in which a source stores them."""

import numpy as np
import torch
from small_data import digit, photograph
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def uint16_picture() -> Tensor:
    """A digit as a microscope would store it, (1, 32, 32)."""
    grey_HW = np.asarray(digit()).astype(np.uint16) * 257
    return torch.from_numpy(grey_HW[None])


def stored() -> dict[str, object]:
    """One image of every stored type."""
    levels_CHW = F.pil_to_tensor(photograph())
    return {
        "picture": photograph(),
        "grey": digit(),
        "uint8": levels_CHW.repeat(4, 1, 1),
        "uint16": uint16_picture(),
        "float32": levels_CHW.float() * 10 - 300,
    }


# -------------------------------------------------------------------- the training transform
