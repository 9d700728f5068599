"""Operations of training on one image, by PyTorch's own counter."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from mim.model import MaskedImageModel
from mim.structures import ImageSpec


def training_flops(model: MaskedImageModel, image: ImageSpec) -> int:
    """Forward and backward of one image; a multiply-add counts as two. `model` is on the meta device.

    Matrix products, convolutions and attention are counted; normalisations and the like are not.
    """
    img_BCHW = torch.empty(1, image.channels, image.height, image.width, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(img_BCHW, model.sample_mask(img_BCHW)).loss.backward()
    return counter.get_total_flops()
