"""Augmentations that change the values of pixels: noise, colour, channel dropout, for any number of channels.

Shapes: C channels, H W pixels.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from mim.data.augmentations.base import Augmentation
from mim.data.settings import DataSettings
from mim.data.transforms import to_unit
from mim.ops.resample import TOP


class ValueAugmentation(Augmentation):
    """Changes values and moves none, so that masks stay as they are. To write one, implement `change`.

    Of uint8 and uint16 it sees values scaled to [0, 1], and its results are rounded and clipped to the stored type.
    Floats are as they are, neither scaled, rounded nor clipped; a NaN should stay one.
    """

    @abstractmethod
    def change(self, unit_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """Other values, of the same shape. unit_CHW: float32, which may be overwritten."""

    def image(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The image with other values, in its stored type."""
        unit_CHW, top = to_unit(image_CHW), TOP.get(image_CHW.dtype)
        changed_CHW = self.change(unit_CHW.clone() if unit_CHW is image_CHW else unit_CHW, generator)
        if top is not None:
            changed_CHW = (changed_CHW * top).round_().clamp_(0, top)
        return changed_CHW.to(image_CHW.dtype)

    def mask(self, mask_HW: Tensor, generator: torch.Generator) -> Tensor:
        """The mask itself."""
        return mask_HW


class Noise(ValueAugmentation, name="noise"):
    """Adds Gaussian noise to each value.

    Args:
        std: standard deviation of the noise, as a share of that of the channel (DATA.std); above 0. In images of 8 bits
            noise below half a level is lost by rounding.
        probability: that an image gets noise.

    Raises ValueError where std is not above 0.
    """

    def __init__(self, data: DataSettings, *, std: float = 0.1, probability: float = 1.0):
        super().__init__(data, probability)
        if not std > 0:
            raise ValueError(f"AUGMENTATION.std is {std:g}: it must be above 0")
        self.std = std

    @property
    def title(self) -> str:
        """With its strength."""
        return f"{super().title} of std {self.std:g}"

    def change(self, unit_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The values and the noise."""
        noise_CHW = torch.randn(unit_CHW.shape, generator=generator)
        return unit_CHW.add_(noise_CHW.mul_(self.std * _column(self.data.std)))


class Colour(ValueAugmentation, name="colour"):
    """Changes brightness, then contrast, then each channel by itself, by factors that are drawn for each image.

    Differs from torchvision's ColorJitter: that is for 1 and 3 channels (AUGMENT.jitter), and knows hue and saturation.

    Args:
        brightness: largest relative change of all values, from 0 to 1: 0.4 multiplies them by 0.6 to 1.4.
        contrast: largest relative change of their distance from the mean of their channel in the image, from 0 to 1.
        channels: largest relative change of each channel by itself, from 0 to 1.
        probability: that an image is changed.

    Raises ValueError for other numbers, and where all three are 0.
    """

    def __init__(
        self,
        data: DataSettings,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        channels: float = 0.0,
        probability: float = 1.0,
    ):
        super().__init__(data, probability)
        self.changes = {"brightness": brightness, "contrast": contrast, "channels": channels}
        for key, change in self.changes.items():
            if not 0 <= change <= 1:
                raise ValueError(f"AUGMENTATION.{key} is {change:g}: it must be from 0 to 1")
        if not any(self.changes.values()):
            raise ValueError(
                "AUGMENTATION.brightness, AUGMENTATION.contrast and AUGMENTATION.channels are 0: set one of them above "
                "0, or leave the augmentation colour out"
            )

    @property
    def title(self) -> str:
        """With its largest changes."""
        return " ".join([super().title, *(f"{key} {change:g}" for key, change in self.changes.items() if change)])

    def change(self, unit_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The values under the three changes."""
        draws = torch.rand(2 + len(unit_CHW), generator=generator).mul_(2).sub_(1)  # from -1 to 1
        brightness, contrast, channels = self.changes.values()
        unit_CHW = unit_CHW.mul_(1 + brightness * draws[0])
        mean_C11 = unit_CHW.nanmean(dim=(1, 2), keepdim=True)
        unit_CHW = (unit_CHW - mean_C11).mul_(1 + contrast * draws[1]).add_(mean_C11)
        return unit_CHW.mul_(1 + channels * draws[2:, None, None])


class ChannelDropout(ValueAugmentation, name="channel_dropout"):
    """Replaces whole channels by their mean over the data set (DATA.mean), which is 0 after normalisation.

    One channel always stays: where all are drawn, one of them is spared at random.

    Args:
        probability: of each channel, to be replaced.

    Raises ValueError where images have one channel, or for a probability that is none.
    """

    def __init__(self, data: DataSettings, *, probability: float = 0.1):
        super().__init__(data, probability)
        self.probability, self.share = 1.0, probability  # each image draws, for each of its channels
        if data.channels < 2:
            raise ValueError(
                f"AUGMENTATION.name is {self.name} and DATA.channels {data.channels}: it needs at least 2 channels, "
                "of which one stays"
            )

    @property
    def title(self) -> str:
        """With its probability."""
        return f"{self.name} {self.share:g}"

    def change(self, unit_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """The values, with the mean in their place in some channels."""
        dropped_C = torch.rand(len(unit_CHW), generator=generator) < self.share
        spared = torch.randint(len(unit_CHW), (), generator=generator)
        if dropped_C.all():
            dropped_C[spared] = False
        return torch.where(dropped_C[:, None, None], _column(self.data.mean), unit_CHW)


def _column(values_C: tuple[float, ...] | str) -> Tensor:
    """Numbers of channels (C, 1, 1), from DATA.mean or DATA.std, which are known once images are read."""
    assert values_C != "estimate"
    return torch.tensor(values_C)[:, None, None]
