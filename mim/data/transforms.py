"""From a stored image to the pixels a model sees: crop and flip, on the host or the device, and normalisation there.

Shapes: B batch, C channels, H W pixels.
"""

import math
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode

from mim.data.settings import AugmentSettings
from mim.data.sources.base import Need, Stored, sides
from mim.ops.resample import Interpolation, crop_resize

STRIP = 100  # times as long, for its width, as what is cut out of its middle: the ends of such an image are never seen
ATTEMPTS = 10  # at a crop that fits into the image
PILLOW = {InterpolationMode.BICUBIC: Image.Resampling.BICUBIC, InterpolationMode.BILINEAR: Image.Resampling.BILINEAR}
SPARE = 1.5  # pixels along each side of a crop for every one of the result, that a smaller decoding must leave


@dataclass(frozen=True, slots=True)
class Crop:
    """A box of an image, in pixels of the size it is stored with, and whether it is shown mirrored."""

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
        return self.finish(self.crop(image, seed), seed)

    def draw_crop(self, height: int, width: int, seed: int) -> Crop:
        """The crop of an image that is stored with that size.

        The very numbers that torchvision's RandomResizedCrop and RandomHorizontalFlip draw, in their order and type,
        from a generator of its own. After 10 boxes that do not fit, the largest at the centre of an allowed shape.
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

    def enough(self, crop: Crop) -> Need:
        """What a stored image must keep so that its crop loses nothing that the result can show."""
        by = min(crop.height / self.size[0], crop.width / self.size[1]) / SPARE
        return Need(max(1.0, by), crop.top + crop.height)

    def crop(self, image: Stored, seed: int) -> Stored:
        """The crop that the seed draws, resized and perhaps mirrored."""
        return self.cut(image, self.draw_crop(*sides(image), seed), sides(image))

    def cut(self, image: Stored, crop: Crop, stored: tuple[int, int]) -> Stored:
        """A crop, resized and perhaps mirrored. stored: height and width that it is measured in."""
        image = _resized_crop(image, crop, stored, self.size, self.interpolation)
        return _mirrored(image) if crop.flipped else image

    def finish(self, image: Stored, seed: int) -> Tensor:
        """What comes after the crop: (C, H, W) in the stored type."""
        return to_tensor(image)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        least, most = self.ratio
        if width / height < least:
            return round(width / least), width
        if width / height > most:
            return height, round(height * most)
        return height, width


class DeviceCropFlip(RandomCropFlip):
    """RandomCropFlip in two halves: crops are drawn on the host, from the same seeds, and cut out on the device."""

    def apply(self, images_NCHW: Tensor, crops_B5: Tensor) -> Tensor:
        """Crops (B, C, H, W) of whole images, B a multiple of N, in the stored type; see crop_resize."""
        return crop_resize(images_NCHW, crops_B5, self.size, self.settings.interpolation)


class CentreCrop:
    """The evaluation transform: resized until `share` of its sides covers the size, then cropped at the centre.

    Source: MAE, util/datasets.py; SimMIM, data/data_finetune.py (both .875 at 224 px).
    """

    def __init__(self, settings: AugmentSettings, size: tuple[int, int], share: float = 1.0):
        self.size, self.interpolation, self.share = size, InterpolationMode(settings.interpolation), share

    def __call__(self, image: Stored, seed: int = 0) -> Tensor:
        """(C, H, W) in the stored type; nothing is drawn from the seed."""
        image = _without_ends(image, STRIP * max(self.size) // min(self.size))
        height, width = stored = sides(image)
        covering = [0, 0]
        tight = 0 if self.size[0] * width >= self.size[1] * height else 1  # the axis that just covers; cut, not rounded
        covering[tight] = max(self.size[tight], int(self.size[tight] / self.share + 1e-6))
        covering[1 - tight] = max(self.size[1 - tight], covering[tight] * stored[1 - tight] // stored[tight])
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
        unit_BCHW = to_unit(images_BCHW)
        # on a CPU, memory that is touched for the first time is most of the time: what is ours is written over
        centred_BCHW = unit_BCHW.sub_(self.mean_C11) if unit_BCHW is not images_BCHW else unit_BCHW - self.mean_C11
        return centred_BCHW.div_(self.std_C11)

    def undo(self, img_BCHW: Tensor) -> Tensor:
        """Normalised images back to stored units scaled to [0, 1]."""
        return img_BCHW * self.std_C11 + self.mean_C11


def to_unit(images: Tensor) -> Tensor:
    """uint8 and uint16 scaled to [0, 1] in float32, a tensor of its own; floats as they are."""
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype)
    return images.float().div_(scale) if scale else images.float()


def _resized_crop(
    image: Stored, crop: Crop, stored: tuple[int, int], size: tuple[int, int], interpolation: InterpolationMode
) -> Stored:
    """The pixels of a crop in another size. stored: height and width that the crop is measured in."""
    box = crop.top, crop.left, crop.top + crop.height, crop.left + crop.width
    by = _factor(stored[1], sides(image)[1])
    if by != 1:
        top, left, bottom, right = (edge / by for edge in box)
        if isinstance(image, Image.Image):  # edges between pixels, which tensors cannot have
            return image.resize((size[1], size[0]), PILLOW[interpolation], box=(left, top, right, bottom))
        box = round(top), round(left), max(round(bottom), round(top) + 1), max(round(right), round(left) + 1)
    top, left, bottom, right = box
    if isinstance(image, Image.Image):
        return _resize(image.crop((left, top, right, bottom)), size, interpolation)
    image = image[:, top:bottom, left:right]
    if (
        image.dtype != torch.uint8
        or not torch.backends.cpu.get_cpu_capability().startswith("AVX")
        or size == sides(image)
    ):
        return _resize(image, size, interpolation)
    if image.stride(0) == 1:  # as decoders write it; in one piece it is resized faster
        image = image[None].contiguous(memory_format=torch.channels_last)[0]
    # what torchvision would call, after many small steps that take longer the more there is between them
    return interpolate(image[None], size=size, mode=interpolation.value, antialias=True)[0]


def _without_ends(image: Stored, most: int) -> Stored:
    """The middle of a strip, `most` times as long as it is wide; other images as they are.

    Resized whole until its short side covers a picture, it would take gigabytes.
    """
    height, width = sides(image)
    longest = most * min(height, width)
    if max(height, width) <= longest:
        return image
    return F.center_crop(image, [min(height, longest), min(width, longest)])


def _factor(stored: int, seen: int) -> float:
    """What one side was divided by; decoders of JPEG round a side up."""
    whole = round(stored / seen)
    return whole if math.ceil(stored / whole) == seen else stored / seen


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
