"""Channels: the weights of a first layer for another number of channels.

Shapes: D output channels, C input channels.
"""

from torch import Tensor


def adapt_channels(weight_DC: Tensor, channels: int) -> Tensor:
    """Weights (D, C, ...) for another number of input channels, as timm adapts them.

    Those for one channel are the sum over all. Those for more are the old ones, repeated until there are enough, times
    old / new channels, so that the sum over the channels of grey images is about the same. In fp32, then as before.
    Source: timm, models/_manipulate.py, adapt_input_conv; Differs from: it repeats 3 channels only.

    Raises ValueError where there are fewer new channels than old ones, and more than one: no rule says which.
    """
    before = weight_DC.shape[1]
    if channels == before:
        return weight_DC
    if channels == 1:
        return weight_DC.float().sum(1, keepdim=True).to(weight_DC.dtype)
    if channels < before:
        raise ValueError(
            f"weights for {before} channels are adapted to 1 channel or to more than {before}, and DATA.channels is "
            f"{channels}: no rule says which of the {before} these are"
        )
    times = -(-channels // before)
    repeated_DC = weight_DC.float().repeat(1, times, *[1] * (weight_DC.ndim - 2))[:, :channels]
    return (repeated_DC * (before / channels)).to(weight_DC.dtype)
