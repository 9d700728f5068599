"""Augmentations that move pixels: of an image and of its mask alike, exactly.

Shapes: C channels, H W pixels.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from mim.data.augmentations.base import Augmentation
from mim.data.nearest import moved
from mim.data.settings import DataSettings


class GeometricAugmentation(Augmentation):
    """Moves pixels and changes none: flips, turns, shifts of whole pixels. To write one, implement `move`."""

    @abstractmethod
    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels (..., H, W) at other places, of the same shape: an image (C, H, W), or a mask (H, W)."""

    def image(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The image with its pixels moved."""
        return moved(image_CHW, lambda pixels: self.move(pixels, generator))

    def mask(self, mask_HW: Tensor, generator: torch.Generator) -> Tensor:
        """The mask with its pixels moved as those of the image."""
        return self.move(mask_HW, generator)


class VerticalFlip(GeometricAugmentation, name="vertical_flip"):
    """Mirrors an image top to bottom.

    Args:
        probability: that an image is mirrored.
    """

    def __init__(self, data: DataSettings, *, probability: float = 0.5):
        super().__init__(data, probability)

    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in reverse order."""
        return pixels.flip(-2)


class QuarterTurns(GeometricAugmentation, name="quarter_turns"):
    """Turns an image by a number of quarter turns, which is drawn from a list; all of them are equally likely.

    Args:
        turns: numbers of quarter turns against the clock, from 0 to 3; [0, 2] for images that are not square.

    Raises ValueError for other numbers, and where an odd one would exchange a height and a width that differ.
    """

    def __init__(self, data: DataSettings, *, turns: tuple[int, ...] = (0, 1, 2, 3)):
        super().__init__(data)
        if not turns or not set(turns) <= {0, 1, 2, 3}:
            raise ValueError(f"AUGMENTATION.turns is {list(turns)}: a list of numbers from 0 to 3")
        if data.image_size[0] != data.image_size[1] and any(count % 2 for count in turns):
            raise ValueError(
                f"AUGMENTATION.turns is {list(turns)} and DATA.image_size {list(data.image_size)}: 1 and 3 quarter "
                "turns would exchange height and width, which differ; set AUGMENTATION.turns [0, 2]"
            )
        self.turns = turns

    @property
    def title(self) -> str:
        """With its numbers of turns."""
        return f"{self.name} {list(self.turns)}"

    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The pixels, turned. Equal to numpy's rot90 in the plane of rows and columns."""
        drawn = int(torch.randint(len(self.turns), (), generator=generator))
        return pixels.rot90(self.turns[drawn], (-2, -1))
