"""Preprocess: from stored images to what the model sees, on the device.

Shapes: B batch, N images, C channels, H W pixels.
"""

from functools import partial

import torch
from torch import Tensor, nn

from mim.data.settings import AugmentSettings
from mim.data.transforms import to_unit
from mim.ops.resample import crop_resize

TOUCHED = 1e-6  # weight of missing pixels in one that is resized from them, above which it is missing itself


class Preprocess(nn.Module):
    """Cuts the crops that a batch brings along (AUGMENT.on_device), scales to [0, 1], and normalises to float32.

    uint8 and uint16 are scaled to [0, 1], floats stay as they are; then (x - mean) / std for each channel.

    augment gives the interpolation of crops that are cut here, size their height and width.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: AugmentSettings | None = None,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.augment, self.size = augment, size
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images_NCHW: Tensor, crops_B5: Tensor | None = None) -> Tensor:
        """Normalised images (B, C, H, W). crops_B5: as Batch holds them; B is a multiple of N."""
        return self.normalise(self.crop(images_NCHW, crops_B5))

    def crop(self, images_NCHW: Tensor, crops_B5: Tensor | None) -> Tensor:
        """The crops of images in their stored type; without crops the images as they are."""
        if crops_B5 is None:
            return images_NCHW
        assert self.augment is not None
        assert self.size is not None
        cut = partial(crop_resize, boxes_B5=crops_B5, size=self.size, interpolation=self.augment.interpolation)
        if not images_NCHW.is_floating_point():
            return cut(images_NCHW)
        missing_NCHW = images_NCHW.isnan()  # as a factor, NaN would spread over its whole row and column
        touched_BCHW = cut(missing_NCHW.to(images_NCHW.dtype)).abs() > TOUCHED
        return cut(images_NCHW.masked_fill(missing_NCHW, 0.0)).masked_fill(touched_BCHW, torch.nan)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Stored images, scaled and normalised. Missing pixels (NaN) become 0, the mean of their channel."""
        unit_BCHW = to_unit(images_BCHW)
        # on a CPU, the first write to new memory is most of the time: a tensor of our own is overwritten
        centred_BCHW = unit_BCHW.sub_(self.mean_C11) if unit_BCHW is not images_BCHW else unit_BCHW - self.mean_C11
        img_BCHW = centred_BCHW.div_(self.std_C11)
        if not images_BCHW.is_floating_point():
            return img_BCHW
        return img_BCHW.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)

    def undo(self, img_BCHW: Tensor) -> Tensor:
        """Normalised images back to the scale [0, 1]."""
        return img_BCHW * self.std_C11 + self.mean_C11


def missing_pixels(images_BCHW: Tensor) -> Tensor | None:
    """Where stored images lack the value of any channel (NaN), (B, H, W) bool; None where their type has no NaN."""
    return images_BCHW.isnan().any(dim=1) if images_BCHW.is_floating_point() else None
