"""Digits: the 1,797 handwritten digits of scikit-learn, a data set that needs no download."""

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
        from sklearn.datasets import load_digits  # a second to import, and only this source needs it
        from sklearn.model_selection import train_test_split

        super().__init__(split, settings)
        check_channels(settings.channels)
        digits = load_digits()
        parts = train_test_split(np.arange(len(digits.target)), test_size=360, random_state=0, stratify=digits.target)
        chosen = parts[0 if split == "train" else 1]
        self.labels = digits.target[chosen].astype(np.int64)
        self.pictures = [self._picture(digits.images[index]) for index in chosen]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Image.Image:
        return self.pictures[index]

    def _picture(self, levels_HW: np.ndarray) -> Image.Image:
        small = Image.fromarray((levels_HW * (255 / 16)).round().astype(np.uint8))
        notes: list[str] = []
        image = to_mode(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), self.settings.channels, notes)
        self.say(notes, "digits")
        return image
