"""The settings of DATA and AUGMENT: each key with its meaning, its default and its range. No torch here."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from mim.io.checks import at_least

RAND_AUGMENT = r"rand(-((m|n|mmax)\d+|(mstd|p)\d+(\.\d+)?|inc[01]|tweights))*"

# of a pixel: squares of much larger numbers are infinite in float32, as that of -3.4e38, a common no-data value
LARGEST_PIXEL = 1e18
MOST_MASKS = 256  # of an image in a step: 16 times those of data2vec 2.0

Pages = Literal["channels", "first", "middle", "max"]
Scale = tuple[float, float] | Literal["type", "percentile"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which channels of a file become those of an image."""

    numbers: tuple[int | str, ...] = ()  # DATA.channels_from; none for all
    pages: Pages = "channels"  # DATA.pages
    to_float: bool = False  # whether the image is scaled to floats, so that its stored type does not matter


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """DATA: the keys that all sources share.

    Args:
        path: where the images are; each source says what it expects here.
        image_size: height and width in pixels that the model sees.
        channels: channels of an image.
        channels_from: which channels of a file these are, in this order: numbers from 0, or names where the file has
            them (OME-TIFF, GeoTIFF by GDAL), such as `[3, 2, 1]`; `all` takes all, and then a file must have
            DATA.channels. A channel may stand there twice.
        pages: what several pages of a TIFF are: `channels` of one image, in the file's order, whatever its axes; or
            planes or frames, of which the `first` or the `middle` is read, or the largest value of each pixel (`max`).
            A channel axis, which OME-TIFF, ImageJ and tifffile name, and samples of a page always are channels.
        scale: what the model sees of a pixel value, before mean and std: `type` divides uint8 by 255 and uint16 by
            65535, and leaves floats as they are; `percentile` maps the 1st and 99th percentile of each channel of each
            image to 0 and 1, and clips what is beyond; `[low, high]` maps these two numbers to 0 and 1, and clips
            nothing.
        mean: mean per channel of images under DATA.scale, which are in [0, 1] (float images by `type` as they are);
            `estimate` computes it from the training images.
        std: standard deviation per channel, as for mean; give both, or estimate both.
        nodata: the number that marks missing pixels in the files, such as -9999. NaN does so too, and what a GeoTIFF
            declares as its own. Mean and std leave them out.
        missing: what becomes of missing pixels. `hide`: the model sees the mean of their channel in their place; in
            pretraining the masker hides the cells that have some, as far as it hides so many, and no loss counts these.
            `broken`: an image with some counts as broken.
        batch_size: images of one micro-batch on one device.
        repeats: crops of each image in an epoch, in neighbouring rows of one batch; it divides batch_size. Source:
            Hoffer et al. 2020, repeated augmentation.
        masks: masks of each image in a step of pretraining: it is read, cropped and given to the target once, and the
            encoder sees it under each of them, at most 256. Memory and time of a step grow with them. batch_size and
            TRAIN.batch count images. Source: data2vec 2.0 (arXiv:2212.07525), section 3.4, 8 or 16.
        workers: dataloader workers of one device; 0 reads in the training process.
        max_broken: share of broken files of the data set, from 0 to 1, above which a run stops: of files that cannot be
            read, have infinite pixels, or lack all pixels. One such file never stops a run.
        retry_s: seconds that reading waits for lost storage, such as a network mount, before the run ends; 0 for none.
    """

    path: str = ""
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    channels_from: tuple[int | str, ...] | Literal["all"] = "all"
    pages: Pages = "channels"
    scale: Scale = "type"
    mean: tuple[float, ...] | Literal["estimate"] = "estimate"
    std: tuple[float, ...] | Literal["estimate"] = "estimate"
    nodata: float | Literal["none"] = "none"
    missing: Literal["hide", "broken"] = "hide"
    batch_size: int = 64
    repeats: int = 1
    masks: int = 1
    workers: int = 4
    max_broken: float = 0.01
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        counts = {
            "channels": self.channels,
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "masks": self.masks,
        }
        at_least("DATA", 1, **counts)
        at_least("DATA", 0, workers=self.workers)
        self._check_channels()
        if self.masks > MOST_MASKS:
            raise ValueError(
                f"DATA.masks is {self.masks}: at most {MOST_MASKS} are allowed, because "
                f"{self.batch_size * self.masks:,} images under masks would be in memory at once, with DATA.batch_size "
                f"{self.batch_size}. data2vec 2.0 has 8 or 16 masks; for more of them train more epochs"
            )
        if self.batch_size % self.repeats:
            raise ValueError(
                f"DATA.batch_size is {self.batch_size} and DATA.repeats {self.repeats}: the crops of an image stay in "
                "one batch, so DATA.batch_size must be a multiple of DATA.repeats"
            )
        if min(self.image_size) < 1:
            raise ValueError(f"DATA.image_size is {list(self.image_size)}: height and width must be at least 1")
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"DATA.max_broken is {self.max_broken}: it is a share, from 0 to 1")
        if self.nodata != "none" and not isfinite(self.nodata):
            raise ValueError(f"DATA.nodata is {self.nodata}: a finite number, or none; NaN marks missing pixels anyway")
        if not 0 <= self.retry_s < float("inf"):
            raise ValueError(f"DATA.retry_s is {self.retry_s}: it is a number of seconds, 0 for none")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values != "estimate" and len(values) != self.channels:
                raise ValueError(
                    f"DATA.{key} has {len(values)} numbers and DATA.channels is {self.channels}: "
                    "give one number a channel, or estimate"
                )
        if (self.mean == "estimate") != (self.std == "estimate"):
            raise ValueError("DATA.mean and DATA.std: give numbers for both, or estimate both")
        if self.std != "estimate" and min(self.std) <= 0:
            raise ValueError(f"DATA.std is {list(self.std)}: every number must be positive")

    def _check_channels(self) -> None:
        """Raises ValueError where channels_from names another number of channels, or scale has no range."""
        if self.channels_from != "all" and len(self.channels_from) != self.channels:
            names = ", ".join(map(str, self.channels_from))
            raise ValueError(
                f"DATA.channels_from is [{names}] and DATA.channels is {self.channels}: set DATA.channels "
                f"{len(self.channels_from)}, the number of channels of an image, or name {self.channels}"
            )
        if not isinstance(self.scale, str) and not (
            self.scale[0] < self.scale[1] and max(map(abs, self.scale)) <= LARGEST_PIXEL
        ):
            raise ValueError(
                f"DATA.scale is {list(self.scale)}: two rising numbers up to {LARGEST_PIXEL:g}, in the units of a file"
            )

    @property
    def selection(self) -> Selection:
        """Which channels of a file become those of an image."""
        numbers = () if self.channels_from == "all" else self.channels_from
        return Selection(numbers, self.pages, self.scale != "type")

    @property
    def nodata_value(self) -> float | None:
        """DATA.nodata as a number; None for none."""
        return None if self.nodata == "none" else self.nodata


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """AUGMENT: a random crop, resized, and a horizontal flip. Source: MAE, main_pretrain.py; SimMIM, data_simmim.py.

    Args:
        crop: `random_resized`, a box of random size and shape, resized (crop_scale, crop_ratio); or `simple`, the whole
            image, resized so that it just covers DATA.image_size, at a random place (padding). Source of `simple`:
            DeiT III (arXiv:2204.07118), PixMIM (arXiv:2303.02416). Or `centre`, the crop of evaluations
            (EVALUATE.crop_pct), the same in each epoch, without a flip.
        padding: pixels of a border that mirrors the resized image, into which a `simple` crop may reach; less than the
            sides of DATA.image_size.
        crop_scale: smallest and largest area of a `random_resized` crop, as shares of the image area.
        crop_ratio: smallest and largest width / height of a `random_resized` crop, relative to that of
            DATA.image_size.
        interpolation: of the resizing, with antialiasing.
        flip: probability of a horizontal flip.
        on_device: crop, resize and flip on the device, with crop `random_resized`. All images of the data set must then
            have one size.
    """

    crop: Literal["random_resized", "simple", "centre"] = "random_resized"
    padding: int = 4
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    on_device: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"AUGMENT.crop_scale is {list(self.crop_scale)}: two rising shares above 0 and up to 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"AUGMENT.crop_ratio is {list(self.crop_ratio)}: two rising positive numbers")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"AUGMENT.flip is {self.flip}: it is a probability, from 0 to 1")
        at_least("AUGMENT", 0, padding=self.padding)
        if self.crop != "random_resized" and self.on_device:
            raise ValueError(
                f"AUGMENT.crop is {self.crop}, and AUGMENT.on_device cuts random_resized crops alone: set "
                "AUGMENT.on_device false, or AUGMENT.crop random_resized"
            )
        if self.crop == "centre" and self.flip:
            raise ValueError(
                f"AUGMENT.crop is centre, which is the same in each epoch, and AUGMENT.flip is {self.flip}: set "
                "AUGMENT.flip 0"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyAugmentSettings(AugmentSettings):
    """AUGMENT of fine-tuning: crop and flip as in pretraining, then the keys from randaugment on, in this order.

    Source: MAE, main_finetune.py; SimMIM, data_finetune.py. Differs from: jitter also works together with RandAugment;
    timm's create_transform ignores it then.

    Args:
        randaugment: RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`; empty for none.
        jitter: largest relative change of brightness, contrast and saturation, from 0 to 1.
        erase: probability that a rectangle of the image becomes noise.
        mixup: alpha of the Beta distribution for mixup; 0 for none. With mixup and cutmix, each batch gets one of them.
        cutmix: alpha of the Beta distribution for CutMix; 0 for none.
    """

    randaugment: str = ""
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        AugmentSettings.__post_init__(self)
        for key, share in (("erase", self.erase), ("jitter", self.jitter)):
            if not 0 <= share <= 1:
                raise ValueError(f"AUGMENT.{key} is {share}: it must be from 0 to 1")
        at_least("AUGMENT", 0, mixup=self.mixup, cutmix=self.cutmix)
        if self.randaugment and not re.fullmatch(RAND_AUGMENT, self.randaugment):
            raise ValueError(
                f"AUGMENT.randaugment is {self.randaugment!r}: it must be in timm's notation, such as "
                "rand-m9-mstd0.5-inc1, with the sections m, n, mmax, mstd, p, inc and tweights"
            )
        for key, value, off in (("randaugment", self.randaugment, "''"), ("jitter", self.jitter, 0)):
            if self.crop == "centre" and value:
                raise ValueError(
                    f"AUGMENT.{key} is {value}, and AUGMENT.crop is centre, which changes no image otherwise: set "
                    f"AUGMENT.crop simple, or AUGMENT.{key} {off}"
                )
            if self.on_device and value:
                raise ValueError(
                    f"AUGMENT.{key} is {value}: it changes crops on the host, and AUGMENT.on_device makes them on the "
                    f"device; set AUGMENT.on_device false, or AUGMENT.{key} {off}"
                )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0
