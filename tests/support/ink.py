"""Masks by a documented rule: the ink of the digits, which are the pixels above half of the brightest level."""

from typing import Any

import numpy as np

from mim.data.settings import DataSettings
from mim.data.sources.base import Split
from mim.data.sources.digits import Digits
from mim.structures import LabelSpec

INK = 127  # levels of 255


class DigitsInk(Digits, name="digits_ink"):
    """The digits with a mask each: 0 is paper, 1 is ink, and the pixels of the border have no class."""

    def __init__(self, split: Split, settings: DataSettings):
        super().__init__(split, settings)
        self.labels = None

    @property
    def label_spec(self) -> LabelSpec:
        return LabelSpec("mask", ("paper", "ink"))

    def mask(self, index: int) -> np.ndarray:
        image: Any = self.read(index)
        mask_HW = (np.asarray(image) > INK).astype(np.int64)
        for edge in (mask_HW[0], mask_HW[-1], mask_HW[:, 0], mask_HW[:, -1]):
            edge[:] = -1
        return mask_HW
