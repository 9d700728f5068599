"""Augmentation of fine-tuning: colours of single images; erasing and mixing of the images of a batch.

Shapes: B batch, C channels, H W pixels, K classes.
"""

import torch
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2.functional import to_pil_image

from mim.data.augmentations.base import Augmentations
from mim.data.settings import ClassifyAugmentSettings, DataSettings
from mim.data.sources.base import Stored
from mim.data.transforms import NO_MORE, RandomCropFlip
from mim.ops.seeding import derive_seed, host_seeded


class RandomCropFlipColour(RandomCropFlip):
    """The transform of one image for fine-tuning: crop, flip, RandAugment, colour jitter; a pure function of a seed.

    Raises ValueError where RandAugment or jitter is on and images have neither 1 nor 3 channels.
    """

    def __init__(self, settings: ClassifyAugmentSettings, data: DataSettings, augmentations: Augmentations = NO_MORE):
        super().__init__(settings, data.image_size, augmentations)
        for key, value, off in (("randaugment", settings.randaugment, "''"), ("jitter", settings.jitter, 0)):
            if value and data.channels not in (1, 3):
                raise ValueError(
                    f"AUGMENT.{key} is {value}: it changes grey or RGB pictures, and DATA.channels is {data.channels}; "
                    f"turn it off with AUGMENT.{key} {off}"
                )
        self.rand_augment = None
        if settings.randaugment:
            self.rand_augment = _rand_augment(
                settings.randaugment,
                {  # as timm's create_transform: pixels from outside the image have the mean colour
                    "translate_const": int(min(data.image_size) * 0.45),
                    "img_mean": () if data.mean == "estimate" else tuple(min(255, round(255 * x)) for x in data.mean),
                    "interpolation": Image.Resampling[settings.interpolation.upper()],
                },
            )
        self.moves_pixels = self.rand_augment is not None  # it turns and shears
        self.jitter = ColorJitter(*[settings.jitter] * 3) if settings.jitter else None

    def finish(self, image: Stored, seed: int) -> Tensor:
        """RandAugment and colour jitter, then the steps of every task."""
        with host_seeded(derive_seed(seed, "colour")):
            if self.rand_augment is not None:
                if isinstance(image, Tensor) and image.dtype == torch.uint8:
                    image = to_pil_image(image)
                if isinstance(image, Tensor):
                    raise ValueError(
                        f"AUGMENT.randaugment works on 8-bit pictures, and the data holds arrays of {image.dtype}: "
                        "turn it off with AUGMENT.randaugment ''"
                    )
                image = self.rand_augment(image)
            if self.jitter is not None:
                if isinstance(image, Tensor) and image.is_floating_point():
                    raise ValueError(
                        f"AUGMENT.jitter needs colours with a known largest value, and the data holds arrays of "
                        f"{image.dtype}: set AUGMENT.jitter 0"
                    )
                image = self.jitter(image)
        return super().finish(image, seed)


class BatchAugment:
    """Erasing, then mixing, of normalised images on their device.

    smoothing: share of a label's weight that mixing spreads over all classes.

    Source: timm's RandomErasing in `pixel` mode and Mixup in `batch` mode, as MAE and SimMIM call them.
    Raises ValueError where images are mixed and the batch is odd.
    """

    def __init__(self, settings: ClassifyAugmentSettings, classes: int, batch_size: int, smoothing: float = 0.0):
        if settings.mixes and batch_size % 2:
            raise ValueError(
                f"DATA.batch_size is {batch_size}: AUGMENT.mixup and AUGMENT.cutmix mix images in pairs, so it must be "
                "even"
            )
        self.erase = RandomErasing(settings.erase, mode="pixel", device="cpu") if settings.erase else None
        self.mix = None
        if settings.mixes:
            self.mix = Mixup(settings.mixup, settings.cutmix, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, img_BCHW: Tensor, labels_B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images, and labels (B,) or, where images are mixed, class weights (B, K). It changes img_BCHW in place."""
        with host_seeded(seed):
            if self.erase is not None:
                self.erase.device = img_BCHW.device
                img_BCHW = self.erase(img_BCHW)
            return (img_BCHW, labels_B) if self.mix is None else self.mix(img_BCHW, labels_B)


def _rand_augment(notation: str, parameters: dict) -> RandAugment:
    augment = rand_augment_transform(notation, parameters)
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    """timm's, but black at 0 bits: the strongest magnitude gives 0, which newer Pillows refuse."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)
