"""Transforms of one stored image on the host: the random crop and flip of training, the centre crop of evaluation.

Shapes: C channels, H W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode

from mim.data.settings import AugmentSettings
from mim.data.sources.base import Need, Stored, size_of

STRIP = 100  # of an image that is longer than this many times its width, only the middle is used
ATTEMPTS = 10  # draws of a crop that fits into the image
SPARE = 1.5  # stored pixels that a reduced decoding must leave for each pixel of the result, along each side


@dataclass(frozen=True, slots=True)
class Crop:
    """A box of an image, in pixels of its stored size, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool


class RandomCropFlip:
    """The training transform: a pure function of the image and a seed, equal to torchvision's under that seed."""

    def __init__(self, settings: AugmentSettings, size: tuple[int, int]):
        aspect = size[1] / size[0]
        self.settings, self.size, self.flip, self.scale = settings, size, settings.flip, settings.crop_scale
        self.ratio = [limit * aspect for limit in settings.crop_ratio]
        self.log_ratio = torch.tensor(self.ratio, device="cpu").log().tolist()
        self.interpolation = InterpolationMode(settings.interpolation)

    def __call__(self, image: Stored, seed: int) -> Tensor:
        """(C, H, W) in the stored type."""
        size = size_of(image)
        return self.finish(self.cut(image, self.draw_crop(*size, seed), size), seed)

    def draw_crop(self, height: int, width: int, seed: int) -> Crop:
        """The crop of an image of that stored size.

        It equals what torchvision's RandomResizedCrop and RandomHorizontalFlip draw, in their order and type, from a
        generator of its own. After 10 boxes that do not fit, it is the largest centred box of an allowed shape.
        """
        generator, one = torch.Generator().manual_seed(seed), torch.empty(1)
        for _ in range(ATTEMPTS):
            area = height * width * one.uniform_(*self.scale, generator=generator).item()
            ratio = one.uniform_(*self.log_ratio, generator=generator).exp().item()
            box = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box[0] <= height and 0 < box[1] <= width:
                top = int(torch.randint(height - box[0] + 1, (1,), generator=generator))
                left = int(torch.randint(width - box[1] + 1, (1,), generator=generator))
                break
        else:
            box = self._largest(height, width)
            top, left = (height - box[0]) // 2, (width - box[1]) // 2
        return Crop(top, left, *box, bool(torch.rand((), generator=generator) < self.flip))

    def need_of(self, crop: Crop) -> Need:
        """What decoding must keep of an image so that the result of the crop loses nothing."""
        reduction = min(crop.height / self.size[0], crop.width / self.size[1]) / SPARE
        return Need(max(1.0, reduction), crop.top + crop.height)

    def cut(self, image: Stored, crop: Crop, stored_size: tuple[int, int]) -> Stored:
        """A crop, resized and perhaps mirrored. stored_size: height and width of the image that the crop refers to."""
        image = _resized_crop(image, crop, stored_size, self.size, self.interpolation)
        return _mirrored(image) if crop.flipped else image

    def finish(self, image: Stored, seed: int) -> Tensor:
        """The steps after the crop: (C, H, W) in the stored type."""
        return to_tensor(image)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        least, most = self.ratio
        if width / height < least:
            return round(width / least), width
        if width / height > most:
            return height, round(height * most)
        return height, width


class DeviceCropFlip(RandomCropFlip):
    """RandomCropFlip that only draws crops on the host, from the same seeds; Preprocess cuts them on the device."""


class CentreCrop:
    """The evaluation transform: resized so that `share` of its sides covers the size, then cropped at the centre.

    Source: MAE, util/datasets.py; SimMIM, data/data_finetune.py (both .875 at 224 px).
    """

    def __init__(self, settings: AugmentSettings, size: tuple[int, int], share: float = 1.0):
        self.size, self.interpolation, self.share = size, InterpolationMode(settings.interpolation), share

    def __call__(self, image: Stored, seed: int = 0) -> Tensor:
        """(C, H, W) in the stored type. The seed has no effect."""
        image = without_ends(image, STRIP * max(self.size) // min(self.size))
        height, width = stored = size_of(image)
        resized = [0, 0]
        tight = 0 if self.size[0] * width >= self.size[1] * height else 1  # the axis that just covers; cut, not rounded
        resized[tight] = max(self.size[tight], int(self.size[tight] / self.share + 1e-6))
        resized[1 - tight] = max(self.size[1 - tight], resized[tight] * stored[1 - tight] // stored[tight])
        return to_tensor(F.center_crop(_resize(image, (resized[0], resized[1]), self.interpolation), list(self.size)))


def to_unit(images: Tensor) -> Tensor:
    """uint8 and uint16 scaled to [0, 1] in float32, in a new tensor; floats as they are."""
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype)
    return images.float().div_(scale) if scale else images.float()


def _resized_crop(
    image: Stored, crop: Crop, stored_size: tuple[int, int], size: tuple[int, int], interpolation: InterpolationMode
) -> Stored:
    """The pixels of a crop, resized to `size`."""
    box = crop.top, crop.left, crop.top + crop.height, crop.left + crop.width
    reduction = _reduction(stored_size[1], size_of(image)[1])
    if reduction != 1:
        top, left, bottom, right = (edge / reduction for edge in box)
        if isinstance(image, Image.Image):  # its edges may lie between pixels; those of a tensor cannot
            resampling = Image.Resampling[interpolation.name]
            return image.resize((size[1], size[0]), resampling, box=(left, top, right, bottom))
        box = round(top), round(left), max(round(bottom), round(top) + 1), max(round(right), round(left) + 1)
    top, left, bottom, right = box
    if isinstance(image, Image.Image):
        return _resize(image.crop((left, top, right, bottom)), size, interpolation)
    image = image[:, top:bottom, left:right]
    has_avx = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if image.dtype != torch.uint8 or not has_avx or size == size_of(image):
        return _resize(image, size, interpolation)
    if image.stride(0) == 1:  # channels are innermost, as decoders write them: contiguous, it is resized faster
        image = image[None].contiguous(memory_format=torch.channels_last)[0]
    # the function that torchvision calls, without its many small steps before
    return interpolate(image[None], size=size, mode=interpolation.value, antialias=True)[0]


def without_ends(image: Stored, aspect: int) -> Stored:
    """The middle of an image that is longer than `aspect` times its width; other images as they are.

    A long strip that is resized as a whole until its short side fits would take gigabytes.
    """
    size, longest = size_of(image), aspect * min(size_of(image))
    return image if max(size) <= longest else F.center_crop(image, [min(side, longest) for side in size])


def _reduction(stored: int, decoded: int) -> float:
    """The number by which decoding divided a side. Decoders of JPEG round the result up."""
    factor = round(stored / decoded)
    return factor if math.ceil(stored / factor) == decoded else stored / decoded


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
