"""From a stored image to the pixels a model sees: crop and flip on the host, normalisation on the device.

Shapes: B batch, C channels, H W pixels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from mim.data.base import Stored


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """AUGMENT: a random crop, resized, and a horizontal flip.

    crop_scale: smallest and largest area of the crop, as shares of the image; crop_ratio: smallest and largest
    width over height of the crop, relative to that of DATA.image_size; interpolation: of the resizing, with
    antialiasing; flip: probability of a horizontal flip.
    Source: MAE, main_pretrain.py; SimMIM, data/data_simmim.py.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"AUGMENT.crop_scale is {list(self.crop_scale)}: two rising shares above 0 and up to 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"AUGMENT.crop_ratio is {list(self.crop_ratio)}: two rising positive numbers")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"AUGMENT.flip is {self.flip}: it is a probability, from 0 to 1")


class RandomCropFlip:
    """The training transform: a pure function of the image and a seed."""

    def __init__(self, settings: AugmentSettings, size: tuple[int, int]):
        aspect = size[1] / size[0]
        self.size, self.flip, self.scale = size, settings.flip, list(settings.crop_scale)
        self.ratio = [limit * aspect for limit in settings.crop_ratio]
        self.interpolation = InterpolationMode(settings.interpolation)

    def __call__(self, image: Stored, seed: int) -> Tensor:
        """(C, H, W) in the stored type."""
        return to_tensor(self.crop(image, seed))

    def crop(self, image: Stored, seed: int) -> Stored:
        """The image cropped, resized and perhaps mirrored."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.random.default_generator.manual_seed(seed)
            top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
            flipped = bool(torch.rand(()) < self.flip)
        image = _resize(F.crop(image, top, left, height, width), self.size, self.interpolation)
        return _mirrored(image) if flipped else image


class CentreCrop:
    """The evaluation transform: resized until `share` of its sides covers the size, then cropped at the centre.

    Source: MAE, util/datasets.py; SimMIM, data/data_finetune.py (both .875 at 224 px).
    """

    def __init__(self, settings: AugmentSettings, size: tuple[int, int], share: float = 1.0):
        self.size, self.interpolation, self.share = size, InterpolationMode(settings.interpolation), share

    def __call__(self, image: Stored, seed: int = 0) -> Tensor:
        """(C, H, W) in the stored type; nothing is drawn from the seed."""
        height, width = F.get_size(image)
        sides, covering = (height, width), [0, 0]
        tight = 0 if self.size[0] * width >= self.size[1] * height else 1  # the axis that just covers; cut, not rounded
        covering[tight] = max(self.size[tight], int(self.size[tight] / self.share + 1e-6))
        covering[1 - tight] = max(self.size[1 - tight], covering[tight] * sides[1 - tight] // sides[tight])
        return to_tensor(F.center_crop(_resize(image, (covering[0], covering[1]), self.interpolation), list(self.size)))


class Normalize(nn.Module):
    """Stored images to normalised float32, on whatever device they are.

    uint8 and uint16 are scaled to [0, 1], floats are taken as they are; then (x - mean) / std for each channel.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return (to_unit(images_BCHW) - self.mean_C11) / self.std_C11

    def undo(self, img_BCHW: Tensor) -> Tensor:
        """Normalised images back to stored units scaled to [0, 1]."""
        return img_BCHW * self.std_C11 + self.mean_C11


def to_unit(images: Tensor) -> Tensor:
    """uint8 and uint16 scaled to [0, 1] in float32; floats as they are."""
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype, 1)
    return images.float() / scale


def _resize(image: Stored, size: tuple[int, int], interpolation: InterpolationMode) -> Stored:
    if isinstance(image, Tensor) and image.dtype == torch.uint16:  # torchvision would not round this type
        resized = F.resize(image.float(), list(size), interpolation, antialias=True)
        return resized.round().clamp(0, 65535).to(torch.uint16)
    return F.resize(image, list(size), interpolation, antialias=True)


def _mirrored(image: Stored) -> Stored:
    if isinstance(image, Tensor) and image.dtype == torch.uint16:  # older PyTorch does not flip this type
        return image.view(torch.int16).flip(-1).view(torch.uint16)
    return F.horizontal_flip(image)


def to_tensor(image: Stored) -> Tensor:
    """(C, H, W) in the stored type."""
    return image if isinstance(image, Tensor) else F.pil_to_tensor(image)
