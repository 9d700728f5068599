"""Operations of training on one image, by PyTorch's own counter."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mim.structures import ImageSpec

IMAGES = 2  # batch norm needs more than one


@dataclass(frozen=True, slots=True)
class Work:
    """Operations on one image, a multiply-add as two: of the forward pass, and of forward and backward together."""

    forward: int
    training: int


def training_flops(loss: Callable[[Tensor], Tensor], image: ImageSpec) -> int:
    """Forward and backward of one image; a multiply-add counts as two. `loss` is of a model on the meta device.

    Matrix products, convolutions and attention are counted; normalisations and the like are not.
    """
    img_BCHW = torch.empty(IMAGES, image.channels, image.height, image.width, device="meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        loss(img_BCHW).backward()
    return counter.get_total_flops() // IMAGES
