"""Digits: the 1,797 handwritten digits of scikit-learn, a data set that needs no download."""

from functools import cache

import numpy as np
from PIL import Image

from mim.data.decoding.pictures import check_channels, to_mode
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split

SIDE = 32


class Digits(Source, name="digits"):
    """8 x 8 grey digits with 16 levels, scaled up to 32 x 32 with 256 levels (bicubic): 1,437 to train, 360 held out.

    DATA.path has no effect. Source: UCI "Optical Recognition of Handwritten Digits", in scikit-learn.
    """

    classes = tuple("0123456789")

    def __init__(self, split: Split, settings: DataSettings):
        from sklearn.model_selection import train_test_split

        super().__init__(split, settings)
        check_channels(settings.channels)
        pictures, labels = _digits()
        parts = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
        chosen = parts[0 if split == "train" else 1]
        self.labels = labels[chosen]
        self.pictures = [self._in_mode(pictures[index]) for index in chosen]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Image.Image:
        return self.pictures[index]

    def _in_mode(self, picture: Image.Image) -> Image.Image:
        notes: list[str] = []
        image = to_mode(picture, self.settings.channels, notes)
        self.say(notes, "digits")
        return image


@cache
def _digits() -> tuple[list[Image.Image], np.ndarray]:
    """All digits, grey and scaled up, and their labels."""
    from sklearn.datasets import load_digits  # a second to import, and only this source needs it

    digits = load_digits()
    levels_NHW = (digits.images * (255 / 16)).round().astype(np.uint8)
    pictures = [Image.fromarray(levels_HW).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for levels_HW in levels_NHW]
    return pictures, digits.target.astype(np.int64)
