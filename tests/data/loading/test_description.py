"""What becomes of training images, in words."""

import pytest

from mim.data.augment import RandomCropFlipColour
from mim.data.augmentations.base import Augmentations
from mim.data.augmentations.geometric import QuarterTurns, VerticalFlip
from mim.data.augmentations.values import ChannelDropout, Colour, Noise
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.description import crops_text, describe_training
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings
from mim.data.sources.digits import Digits
from mim.data.transforms import CentreCrop, DeviceCropFlip, RandomCropFlip

DATA = DataSettings(image_size=(16, 16), std=(0.2, 0.2, 0.2), mean=(0.5, 0.5, 0.5))
MORE = Augmentations((VerticalFlip(DATA), QuarterTurns(DATA), Noise(DATA, std=0.05), ChannelDropout(DATA)))


def described(transform: RandomCropFlip | CentreCrop) -> str:
    return describe_training(ImageDataset(Digits("train", DataSettings(channels=1)), transform, 0))


def test_crops_are_told_in_words() -> None:
    assert crops_text((224, 192), AugmentSettings()) == "224 x 192, 0.2 to 1 of the area, bicubic"
    simple = AugmentSettings(crop="simple", padding=3, interpolation="bilinear")
    assert crops_text((224, 224), simple) == "224 x 224, of the whole image with a border of 3 pixels, bilinear"


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (RandomCropFlip(AugmentSettings(), (16, 16)), "16 x 16, 0.2 to 1 of the area, bicubic; flip 0.5"),
        (RandomCropFlip(AugmentSettings(flip=0), (16, 8)), "16 x 8, 0.2 to 1 of the area, bicubic; nothing else"),
        (
            RandomCropFlip(AugmentSettings(crop="simple"), (16, 16), MORE),
            "16 x 16, of the whole image with a border of 4 pixels, bicubic; flip 0.5, vertical_flip 0.5, "
            "quarter_turns [0, 1, 2, 3], noise of std 0.05, channel_dropout 0.1",
        ),
        (
            RandomCropFlipColour(
                ClassifyAugmentSettings(flip=0, jitter=0.4, randaugment="rand-m9", mixup=0.8),
                DATA,
                Augmentations((Colour(DATA, contrast=0, probability=0.8),)),
            ),
            "16 x 16, 0.2 to 1 of the area, bicubic; randaugment rand-m9, jitter 0.4, colour 0.8 brightness 0.4, "
            "mixup 0.8",
        ),
        (
            DeviceCropFlip(AugmentSettings(on_device=True), (16, 16)),
            "16 x 16, 0.2 to 1 of the area, bicubic, on the device; flip 0.5",
        ),
        (
            CentreCrop(AugmentSettings(), (16, 16), 0.875),
            "16 x 16, the middle 0.875 of the sides; the same in each epoch",
        ),
    ],
)
def test_training_images_are_told_with_the_size_of_the_first(
    transform: RandomCropFlip | CentreCrop, expected: str
) -> None:
    assert described(transform) == f"32 x 32 (the first) -> {expected}"
