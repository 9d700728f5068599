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

from mim.data.augmentations.base import Augmentations
from mim.data.nearest import Places, centred, cropped_middle, moved, nearest, resized_middle
from mim.data.settings import AugmentSettings
from mim.data.sources.base import Need, Stored, size_of

STRIP = 100  # of an image that is longer than this many times its width, only the middle is used
ATTEMPTS = 10  # draws of a crop that fits into the image
NO_MORE = Augmentations()
SPARE = 1.5  # stored pixels that a reduced decoding must leave for each pixel of the result, along each side


@dataclass(frozen=True, slots=True)
class Crop:
    """A box of an image, in pixels of its stored size, and whether it is mirrored.

    With AUGMENT.crop simple it is a box of the resized image, and may begin outside of it, in its mirrored border.
    """

    top: int
    left: int
    height: int
    width: int
    flipped: bool


class RandomCropFlip:
    """The training transform: a pure function of the image and a seed, equal to torchvision's under that seed."""

    moves_pixels = False  # whether `finish` may move pixels, so that masks would no longer fit

    def __init__(self, settings: AugmentSettings, size: tuple[int, int], augmentations: Augmentations = NO_MORE):
        aspect, self.augmentations = size[1] / size[0], augmentations
        self.settings, self.size, self.flip, self.scale = settings, size, settings.flip, settings.crop_scale
        self.ratio = [limit * aspect for limit in settings.crop_ratio]
        self.log_ratio = torch.tensor(self.ratio, device="cpu").log().tolist()
        self.interpolation = InterpolationMode(settings.interpolation)
        self.simple = SimpleCrop(settings, size) if settings.crop == "simple" else None

    def __call__(self, image: Stored, seed: int) -> Tensor:
        """(C, H, W) in the stored type."""
        size = size_of(image)
        return self.finish(self.cut(image, self.draw_crop(*size, seed), size), seed)

    def draw_crop(self, height: int, width: int, seed: int) -> Crop:
        """The crop of an image of that stored size.

        It equals what torchvision's RandomResizedCrop and RandomHorizontalFlip draw, in their order and type, from a
        generator of its own; with AUGMENT.crop simple, what RandomCrop and RandomHorizontalFlip draw.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = self._draw_resized if self.simple is None else self.simple.draw
        return Crop(*draw(height, width, generator), bool(torch.rand((), generator=generator) < self.flip))

    def need_of(self, crop: Crop, stored_size: tuple[int, int]) -> Need:
        """What decoding must keep of an image of that size so that the result of the crop loses nothing."""
        if self.simple is not None:
            return self.simple.need_of(stored_size)
        reduction = min(crop.height / self.size[0], crop.width / self.size[1]) / SPARE
        return Need(max(1.0, reduction), crop.top + crop.height)

    def cut(self, image: Stored, crop: Crop, stored_size: tuple[int, int]) -> Stored:
        """A crop, resized and perhaps mirrored. stored_size: height and width of the image that the crop refers to."""
        if self.simple is not None:
            image = self.simple.cut(image, crop, stored_size)
        else:
            image = _resized_crop(image, crop, stored_size, self.size, self.interpolation)
        return _mirrored(image) if crop.flipped else image

    def places(self, crop: Crop, stored_size: tuple[int, int]) -> Places:
        """The stored pixels that lie nearest to those of a crop."""
        if self.simple is not None:
            row_H, column_W = self.simple.places(crop, stored_size)
        else:
            row_H = nearest(crop.height, self.size[0], crop.top)
            column_W = nearest(crop.width, self.size[1], crop.left)
        return Places(row_H, column_W.flip(0) if crop.flipped else column_W)

    def finish(self, image: Stored, seed: int) -> Tensor:
        """The steps after the crop: (C, H, W) in the stored type."""
        return self.augmentations.image(to_tensor(image), seed)

    def cut_mask(self, mask_HW: Tensor, crop: Crop, seed: int) -> Tensor:
        """A mask of the stored image as `cut` and `finish` make the image: the nearest pixels, augmented alike."""
        row_H, column_W = self.places(crop, (mask_HW.shape[0], mask_HW.shape[1]))
        return self.augmentations.mask(mask_HW[row_H][:, column_W], seed)

    def _draw_resized(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width. After 10 boxes that do not fit, the largest centred box of an allowed shape."""
        one = torch.empty(1)
        for _ in range(ATTEMPTS):
            area = height * width * one.uniform_(*self.scale, generator=generator).item()
            ratio = one.uniform_(*self.log_ratio, generator=generator).exp().item()
            box = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box[0] <= height and 0 < box[1] <= width:
                top = int(torch.randint(height - box[0] + 1, (1,), generator=generator))
                left = int(torch.randint(width - box[1] + 1, (1,), generator=generator))
                return top, left, *box
        box = self._largest(height, width)
        return (height - box[0]) // 2, (width - box[1]) // 2, *box

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        least, most = self.ratio
        if width / height < least:
            return round(width / least), width
        if width / height > most:
            return height, round(height * most)
        return height, width


class SimpleCrop:
    """Resizes the whole image so that it just covers the size, and takes a random place, with a mirrored border.

    Equal to torchvision's Resize and RandomCrop with padding_mode `reflect`. Source: DeiT III, augment.py; PixMIM.

    Raises ValueError where the border is as wide as the size.
    """

    def __init__(self, settings: AugmentSettings, size: tuple[int, int]):
        if settings.padding >= min(size):
            raise ValueError(
                f"AUGMENT.padding is {settings.padding} and DATA.image_size {list(size)}: a mirrored border is "
                f"narrower than the image, here at most {min(size) - 1} pixels"
            )
        self.size, self.padding, self.interpolation = size, settings.padding, InterpolationMode(settings.interpolation)

    def draw(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a box of the resized image; the border lies at negative places."""
        resized = self._resized_size((height, width))
        rooms = [resized[axis] - self.size[axis] + 2 * self.padding for axis in (0, 1)]
        if rooms == [0, 0]:  # torchvision draws nothing then
            return 0, 0, *self.size
        top, left = (int(torch.randint(room + 1, (1,), generator=generator)) for room in rooms)
        return top - self.padding, left - self.padding, *self.size

    def need_of(self, stored_size: tuple[int, int]) -> Need:
        """All rows, because the whole image is resized."""
        resized = self._resized_size(stored_size)
        reduction = min(stored / length for stored, length in zip(stored_size, resized, strict=True)) / SPARE
        return Need(max(1.0, reduction), stored_size[0])

    def cut(self, image: Stored, crop: Crop, stored_size: tuple[int, int]) -> Tensor:
        """The pixels of a box of the resized image."""
        height, width = self._resized_size(stored_size)
        image_CHW = to_tensor(_resize(without_ends(image, self._longest()), (height, width), self.interpolation))
        rows = _mirror_indices(crop.top, crop.height, height)
        columns = _mirror_indices(crop.left, crop.width, width)
        return moved(image_CHW, lambda pixels: pixels[:, rows][:, :, columns])

    def places(self, crop: Crop, stored_size: tuple[int, int]) -> Places:
        """The stored pixels that lie nearest to those of a box of the resized image."""
        starts, resized = (crop.top, crop.left), self._resized_size(stored_size)
        longest = self._longest() * min(stored_size)
        sides = (
            resized_middle(stored, longest, length)[_mirror_indices(start, count, length)]
            for stored, length, start, count in zip(stored_size, resized, starts, self.size, strict=True)
        )
        return Places(*sides)

    def _longest(self) -> int:
        return STRIP * max(self.size) // min(self.size)

    def _resized_size(self, stored_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the image that just covers the size."""
        longest = self._longest() * min(stored_size)
        return _covering(self.size, (min(stored_size[0], longest), min(stored_size[1], longest)))


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
        image = without_ends(image, self._longest())
        resized = _covering(self.size, size_of(image), self.share)
        return to_tensor(F.center_crop(_resize(image, resized, self.interpolation), list(self.size)))

    def places(self, stored_size: tuple[int, int]) -> Places:
        """The stored pixels that lie nearest to those of the crop."""
        longest = self._longest() * min(stored_size)
        kept = min(stored_size[0], longest), min(stored_size[1], longest)
        sides = (
            resized_middle(stored, longest, length)[centred(length, count) :][:count]
            for stored, length, count in zip(
                stored_size, _covering(self.size, kept, self.share), self.size, strict=True
            )
        )
        return Places(*sides)

    def cropped_places(self, stored_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The crop's row for each stored row (H,), and its column for each stored column (W,); -1 outside of it."""
        longest = self._longest() * min(stored_size)
        kept = min(stored_size[0], longest), min(stored_size[1], longest)
        sides = zip(stored_size, _covering(self.size, kept, self.share), self.size, strict=True)
        row_H, column_W = (cropped_middle(stored, longest, length, count) for stored, length, count in sides)
        return row_H, column_W

    def _longest(self) -> int:
        return STRIP * max(self.size) // min(self.size)


def _covering(size: tuple[int, int], stored: tuple[int, int], share: float = 1.0) -> tuple[int, int]:
    """Height and width to which a stored image is resized so that `share` of its sides just covers a size."""
    tight = 0 if size[0] * stored[1] >= size[1] * stored[0] else 1  # the axis that just covers; cut, not rounded
    just = max(size[tight], int(size[tight] / share + 1e-6))
    wide = max(size[1 - tight], just * stored[1 - tight] // stored[tight])
    return (just, wide) if tight == 0 else (wide, just)


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


def _mirror_indices(start: int, length: int, side: int) -> Tensor:
    """Places start to start + length of a side, where those outside of it are mirrored at its first and last place."""
    place_N = torch.arange(start, start + length).abs()
    return torch.where(place_N < side, place_N, 2 * (side - 1) - place_N)


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
    return moved(image, lambda pixels: pixels.flip(-1)) if isinstance(image, Tensor) else F.horizontal_flip(image)


def to_tensor(image: Stored) -> Tensor:
    """(C, H, W) in the stored type."""
    return image if isinstance(image, Tensor) else F.pil_to_tensor(image)
