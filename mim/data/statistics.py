"""Mean and standard deviation of a data set, for `DATA.mean: estimate`.

Shapes: C channels, H W pixels, P sampled pixels of an image, N of all sampled images.
"""

import logging
import math

import torch
from torch import Tensor

from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Source
from mim.data.sources.retry import RetryingSource
from mim.data.transforms import to_tensor, to_unit
from mim.ops.seeding import generator_for

LOG = logging.getLogger("mim")

SAMPLE = 1000  # images
PIXELS = 256  # of each image that are searched for a no-data value
SENTINELS = (-9999, -999, -99999, -32768, -32767, 32767, 65535, 9999)  # common no-data values
FAR, FAR_SENTINEL = 5.0, 3.0  # standard deviations from the other pixels at which a value looks like no data
LEAST_SHARE, LEAST_PIXELS = 1e-4, 10  # sampled pixels of that value


def estimate_statistics(source: Source, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over up to 1,000 images, chosen by the seed, as a model sees them.

    Broken images are left out, with a warning, and missing pixels (NaN, and DATA.nodata of the source) are, too. A
    constant channel gets the deviation 1, with a warning. A value that looks like a mark for missing pixels is warned
    of.

    Raises ValueError where no image can be read, or all pixels of a channel are missing, and DataLost where the storage
    stays away.
    """
    if not len(source):
        raise ValueError(f"DATA.name {source.name} has no {source.split} images, and DATA.mean estimate needs some")
    order = torch.randperm(len(source), generator=generator_for(torch.device("cpu"), seed, "statistics"))[:SAMPLE]
    sums, sampled, broken = _Sums(), [], {}
    reader = RetryingSource(source)
    for index in order.tolist():
        try:
            stored = reader.read_stored(index)
            unit_CHW = to_unit(to_tensor(reader.scaled(stored)))
        except BrokenImage as error:
            broken[source.describe(index)] = str(error)
            continue
        sums.add(unit_CHW.double())
        sampled.append(_some_pixels(to_tensor(stored), seed, index))
    if broken:
        name, reason = next(iter(broken.items()))
        if not sampled:
            raise ValueError(f"DATA.mean estimate: none of the sampled images can be read, such as {name}: {reason}")
        LOG.warning(
            "mean and std leave out %d of %d sampled images, which cannot be read, such as %s (%s)",
            *(len(broken), len(order), name, reason),
        )
    _warn_of_nodata(torch.cat(sampled, dim=1), source.settings.nodata_value)
    return sums.result()


class _Sums:
    """Sums over the pixels of each channel, float64."""

    def __init__(self) -> None:
        self.count_C, self.total_C, self.square_C = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self.low_C, self.high_C = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def add(self, image_CHW: Tensor) -> None:
        """Takes an image. NaN does not count."""
        missing_CHW = image_CHW.isnan()
        lowest_CHW, highest_CHW = (image_CHW.masked_fill(missing_CHW, end) for end in (torch.inf, -torch.inf))
        image_CHW = image_CHW.masked_fill(missing_CHW, 0.0)
        self.count_C = self.count_C + (~missing_CHW).sum(dim=(1, 2)).double()
        self.total_C = self.total_C + image_CHW.sum(dim=(1, 2))
        self.square_C = self.square_C + (image_CHW**2).sum(dim=(1, 2))
        self.low_C = torch.minimum(self.low_C, lowest_CHW.amin(dim=(1, 2)))
        self.high_C = torch.maximum(self.high_C, highest_CHW.amax(dim=(1, 2)))

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        if not self.count_C.all():
            channels = (self.count_C == 0).nonzero().flatten().tolist()
            raise ValueError(
                f"DATA.mean estimate: all sampled pixels of channels {channels} are missing (NaN, or DATA.nodata): "
                "leave these channels out with DATA.channels_from, or correct DATA.nodata"
            )
        mean_C = self.total_C / self.count_C
        std_C = (self.square_C / self.count_C - mean_C**2).clamp(min=0).sqrt()
        constant_C = self.low_C == self.high_C  # by rounding, the deviation of a constant channel is not exactly 0
        if constant_C.any():
            channels = constant_C.nonzero().flatten().tolist()
            LOG.warning("channels %s never vary: their std is set to 1", channels)
        std_C = torch.where(constant_C, 1.0, std_C)
        std = tuple(float(f"{x:.6g}") for x in std_C.tolist())
        mean = tuple(round(x, 6 - math.floor(math.log10(s))) for x, s in zip(mean_C.tolist(), std, strict=True))
        return mean, std


def _some_pixels(stored_CHW: Tensor, seed: int, index: int) -> Tensor:
    """Stored values at some positions, (C, P) float64, the same positions of each channel."""
    pixels = stored_CHW[0].numel()
    generator = generator_for(torch.device("cpu"), seed, "sampled pixels", index)
    return stored_CHW.flatten(1).float()[:, torch.randint(pixels, (PIXELS,), generator=generator)].double()


def _warn_of_nodata(values_CN: Tensor, nodata: float | None) -> None:
    """Warns of values at an end of the range that many pixels have and that lie far from all others."""
    channels_of: dict[float, list[int]] = {}
    for channel, values_N in enumerate(values_CN):
        valid_N = values_N[~values_N.isnan()]
        valid_N = valid_N if nodata is None else valid_N[valid_N.float() != torch.tensor(nodata)]
        for value in {float(end) for end in (valid_N.min(), valid_N.max())} if len(valid_N) else ():
            if _looks_like_nodata(value, valid_N):
                channels_of.setdefault(value, []).append(channel)
    for value, channels in channels_of.items():
        share = float((values_CN[channels] == value).double().mean())
        LOG.warning(
            "%.2g%% of the pixels of channels %s are exactly %.10g, far from all others. If this marks missing pixels, "
            "set DATA.nodata %.10g: they are then hidden and left out of mean, std and loss",
            *(100 * share, channels, value, value),
        )


def _looks_like_nodata(value: float, values_N: Tensor) -> bool:
    """Whether so many pixels have this value, so far from the others, that it changes their deviation much."""
    others_N = values_N[values_N != value]
    count = len(values_N) - len(others_N)
    share = count / len(values_N)
    if count < LEAST_PIXELS or share < LEAST_SHARE or len(others_N) < 2:
        return False
    deviation = float(others_N.std())
    if not deviation:  # two values in all, as in masks
        return False
    distance = abs(value - float(others_N.mean())) / deviation
    return distance > (FAR_SENTINEL if value in SENTINELS else FAR) and share * distance**2 > 0.5
