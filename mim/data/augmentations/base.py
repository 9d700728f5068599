"""Augmentation: the family of parts that change a training image after its crop, and its mask with it.

Shapes: C channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mim.data.settings import DataSettings
from mim.ops.seeding import generator_for
from mim.registry import Component

HOST = torch.device("cpu")


class Augmentation(Component, ABC, section="AUGMENTATION"):
    """A step of augmentation: a pure function of an image and a generator, which no two images share.

    To write one, subclass `GeometricAugmentation`, which moves pixels, or `ValueAugmentation`, which changes them, with
    `name="..."`; or this class, and implement `image` and `mask`. Keyword-only arguments of a subclass are its keys.

    Args:
        data: the settings of the images: their size, channels, mean and std.
        probability: that it changes an image; else neither method is called.

    Raises ValueError for a probability that is none.
    """

    def __init__(self, data: DataSettings, probability: float = 1.0):
        if not 0 <= probability <= 1:
            raise ValueError(f"AUGMENTATION.probability is {probability:g}: it must be from 0 to 1")
        self.data, self.probability = data, probability

    @property
    def title(self) -> str:
        """What the start of a run calls it, with the keys that matter most."""
        return self.name if self.probability == 1 else f"{self.name} {self.probability:g}"

    @abstractmethod
    def image(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The changed image, of the same shape and type, in a new tensor. image_CHW: uint8, uint16 or float."""

    @abstractmethod
    def mask(self, mask_HW: Tensor, generator: torch.Generator) -> Tensor:
        """The classes (int64) of the pixels of the changed image. The generator is in the state that `image` found."""


class NoAugmentation(Augmentation, name="none"):
    """Nothing beyond the keys of AUGMENT."""

    def image(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The image itself."""
        return image_CHW

    def mask(self, mask_HW: Tensor, generator: torch.Generator) -> Tensor:
        """The mask itself."""
        return mask_HW


@dataclass(frozen=True, slots=True)
class Augmentations:
    """The augmentations of a run in their order: a pure function of an image, or of its mask, and the crop's seed."""

    parts: tuple[Augmentation, ...] = ()

    def image(self, image_CHW: Tensor, seed: int) -> Tensor:
        """The changed image, of the same shape and type."""
        for part, generator in self._drawn(seed):
            image_CHW = part.image(image_CHW, generator)
        return image_CHW

    def mask(self, mask_HW: Tensor, seed: int) -> Tensor:
        """The mask of the image that the same seed changed."""
        for part, generator in self._drawn(seed):
            mask_HW = part.mask(mask_HW, generator)
        return mask_HW

    def _drawn(self, seed: int) -> Iterator[tuple[Augmentation, torch.Generator]]:
        """Those that change the image of this seed, each with a generator of its own."""
        for position, part in enumerate(self.parts):
            generator = generator_for(HOST, seed, "augmentation", position)
            if torch.rand((), generator=generator) < part.probability:
                yield part, generator
