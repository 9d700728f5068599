"""Augmentation of fine-tuning: colours and erasing on single images, mixing of two images and their labels.

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

from mim.data.settings import ClassifyAugmentSettings, DataSettings
from mim.data.sources.base import Stored
from mim.data.transforms import RandomCropFlip, to_tensor
from mim.ops.seeding import derive_seed, host_seeded


class RandomCropFlipColour(RandomCropFlip):
    """The transform of fine-tuning on one image: crop, flip, RandAugment and colour jitter, a pure function of a seed.

    Raises ValueError where images of this many channels have no colours to change.
    """

    def __init__(self, settings: ClassifyAugmentSettings, data: DataSettings):
        super().__init__(settings, data.image_size)
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
                {  # as timm's create_transform: pixels that move in from outside are of the mean colour
                    "translate_const": int(min(data.image_size) * 0.45),
                    "img_mean": () if data.mean == "estimate" else tuple(min(255, round(255 * x)) for x in data.mean),
                    "interpolation": Image.Resampling[settings.interpolation.upper()],
                },
            )
        self.jitter = ColorJitter(*[settings.jitter] * 3) if settings.jitter else None

    def finish(self, image: Stored, seed: int) -> Tensor:
        """The colours."""
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
                        f"AUGMENT.jitter changes colours on a scale of known ends, and the data holds arrays of "
                        f"{image.dtype}: set AUGMENT.jitter 0"
                    )
                image = self.jitter(image)
        return to_tensor(image)


class BatchAugment:
    """The rest, on normalised images on their device: erasing, then mixing. Raises ValueError for an odd batch.

    Source: timm's RandomErasing in `pixel` mode and Mixup in `batch` mode, as MAE and SimMIM call them.
    """

    def __init__(self, settings: ClassifyAugmentSettings, classes: int, batch_size: int):
        if settings.mixes and batch_size % 2:
            raise ValueError(
                f"DATA.batch_size is {batch_size}: AUGMENT.mixup and AUGMENT.cutmix mix images in pairs, so it must be "
                "even"
            )
        self.erase = RandomErasing(settings.erase, mode="pixel", device="cpu") if settings.erase else None
        self.mix = None
        if settings.mixes:
            self.mix = Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=classes)

    def __call__(self, img_BCHW: Tensor, labels_B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images and labels (B,), or weights of the classes (B, K) where images are mixed; changes img_BCHW itself."""
        with host_seeded(seed):
            if self.erase is not None:
                self.erase.device = img_BCHW.device
                img_BCHW = self.erase(img_BCHW)
            return (img_BCHW, labels_B) if self.mix is None else self.mix(img_BCHW, labels_B)


def _rand_augment(word: str, shown: dict) -> RandAugment:
    augment = rand_augment_transform(word, shown)
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    """timm's, and black at 0 bits, which the strongest magnitude asks for and newer Pillows refuse."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)
