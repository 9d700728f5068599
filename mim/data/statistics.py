"""Mean and standard deviation of a data set, for `DATA.mean: estimate`."""

import logging
import math

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Source
from mim.data.transforms import to_unit
from mim.ops.seeding import generator_for

SAMPLE = 1000


def estimate_statistics(source: Source, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over up to 1,000 images, chosen by the seed, scaled as in Preprocess.

    A constant channel gets the deviation 1, with a warning. Raises ValueError where no image can be read.
    """
    order = torch.randperm(len(source), generator=generator_for(torch.device("cpu"), seed, "statistics"))
    count, total_C, square_C = 0, torch.zeros(()), torch.zeros(())
    low_C, high_C = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    reason = ""
    for index in order[:SAMPLE].tolist():
        try:
            stored = source.read(index)
        except BrokenImage as error:
            reason = f"{source.describe(index)}: {error}"
            continue
        image_CHW = to_unit(stored if isinstance(stored, torch.Tensor) else pil_to_tensor(stored)).double()
        if not torch.isfinite(image_CHW).all():
            reason = f"{source.describe(index)}: pixels that are not finite"
            continue
        count += image_CHW[0].numel()
        total_C = total_C + image_CHW.sum(dim=(1, 2))
        square_C = square_C + (image_CHW**2).sum(dim=(1, 2))
        low_C = torch.minimum(low_C, image_CHW.amin(dim=(1, 2)))
        high_C = torch.maximum(high_C, image_CHW.amax(dim=(1, 2)))
    if not count:
        raise ValueError(f"DATA.mean estimate: none of the sampled images can be read, such as {reason}")
    mean_C = total_C / count
    std_C = (square_C / count - mean_C**2).clamp(min=0).sqrt()
    constant_C = low_C == high_C  # because of rounding, the deviation of a constant channel is not exactly 0
    if constant_C.any():
        channels = constant_C.nonzero().flatten().tolist()
        logging.getLogger("mim").warning("channels %s never vary: their std is set to 1", channels)
    std_C = torch.where(constant_C, 1.0, std_C)
    std = tuple(float(f"{x:.6g}") for x in std_C.tolist())
    mean = tuple(round(x, 6 - math.floor(math.log10(s))) for x, s in zip(mean_C.tolist(), std, strict=True))
    return mean, std
