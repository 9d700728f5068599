"""Preprocess: from stored images to what the model sees, on the device.

Shapes: B batch, N images, C channels, H W pixels.
"""

import torch
from torch import Tensor, nn

from mim.data.settings import AugmentSettings
from mim.data.transforms import to_unit
from mim.ops.resample import crop_resize


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
        return crop_resize(images_NCHW, crops_B5, self.size, self.augment.interpolation)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Stored images, scaled and normalised."""
        unit_BCHW = to_unit(images_BCHW)
        # on a CPU, the first write to new memory is most of the time: a tensor of our own is overwritten
        centred_BCHW = unit_BCHW.sub_(self.mean_C11) if unit_BCHW is not images_BCHW else unit_BCHW - self.mean_C11
        return centred_BCHW.div_(self.std_C11)

    def undo(self, img_BCHW: Tensor) -> Tensor:
        """Normalised images back to the scale [0, 1]."""
        return img_BCHW * self.std_C11 + self.mean_C11
