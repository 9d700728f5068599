"""Augmentation of fine-tuning: colours and erasing on single images, mixing of two images and their labels.

Shapes: B batch, C channels, H W pixels, K classes.
"""

import re
from dataclasses import dataclass

import torch
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2.functional import to_pil_image

from mim.data.sources.base import DataSettings, Stored
from mim.data.transforms import AugmentSettings, RandomCropFlip, to_tensor
from mim.ops.seeding import derive_seed, host_seeded

RAND_AUGMENT = r"rand(-((m|n|mmax)\d+|(mstd|p)\d+(\.\d+)?|inc[01]|tweights))*"


@dataclass(frozen=True, kw_only=True)
class ClassifyAugmentSettings(AugmentSettings):
    """AUGMENT of fine-tuning: the random crop and flip of pretraining, and after them, in this order,

    randaugment: timm's word for RandAugment, such as `rand-m9-mstd0.5-inc1`, empty for none; jitter: largest relative
    change of brightness, contrast and saturation; erase: probability that a rectangle becomes noise; mixup, cutmix:
    alpha of the Beta distribution that says how much of another image comes in, 0 for none, and where both are given
    each batch takes one of them; smoothing: share of a label's weight that is spread over all classes.
    Source: MAE, main_finetune.py; SimMIM, data/data_finetune.py. Differs from: jitter works beside RandAugment, where
    timm's create_transform drops it.
    """

    randaugment: str = ""
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        AugmentSettings.__post_init__(self)
        for key, share in (("erase", self.erase), ("smoothing", self.smoothing), ("jitter", self.jitter)):
            if not 0 <= share <= 1:
                raise ValueError(f"AUGMENT.{key} is {share}: it must be from 0 to 1")
        for key, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha < 0:
                raise ValueError(f"AUGMENT.{key} is {alpha}: it must be at least 0")
        if self.randaugment:
            _rand_augment(self.randaugment, {})
        for key, value, off in (("randaugment", self.randaugment, "''"), ("jitter", self.jitter, 0)):
            if self.on_device and value:
                raise ValueError(
                    f"AUGMENT.{key} is {value}: it changes crops on the host, and AUGMENT.on_device makes them on the "
                    f"device; set AUGMENT.on_device false, or AUGMENT.{key} {off}"
                )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


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
    if not re.fullmatch(RAND_AUGMENT, word):
        raise ValueError(
            f"AUGMENT.randaugment is {word!r}: it must be a word of timm's, such as rand-m9-mstd0.5-inc1, with the "
            "sections m, n, mmax, mstd, p, inc and tweights"
        )
    augment = rand_augment_transform(word, shown)
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    """timm's, and black at 0 bits, which the strongest magnitude asks for and newer Pillows refuse."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)
