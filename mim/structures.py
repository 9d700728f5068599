"""The values that cross a boundary between two parts of the program.

Shapes: B batch, C channels, H W height and width of the named grid or image, N tokens, D width, K prefix tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

Pool = Literal["mean", "class", "both"]
MOST_CELLS = 2**24  # of an image: 16 times those of a 16,384 px square in cells of 16 px


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The images an encoder is built for: channels, and height and width in pixels."""

    channels: int
    height: int
    width: int

    def grid(self, cell: int, key: str) -> tuple[int, int]:
        """Cells high and wide. Raises ValueError, naming the axis and `key`, where `cell` does not divide the image."""
        if cell < 1:
            raise ValueError(f"{key} is {cell}: it must be at least 1 pixel")
        for axis, size in (("height", self.height), ("width", self.width)):
            if size % cell:
                below, above = size - size % cell, size + cell - size % cell
                sides = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"{key} {cell} does not divide the image {axis} {size}: use a {axis} of {sides}, or another {key}"
                )
        high, wide = self.height // cell, self.width // cell
        if high * wide > MOST_CELLS:
            raise ValueError(
                f"{key} {cell} cuts the image of {self.height}x{self.width} into {high * wide:,} cells, and at most "
                f"{MOST_CELLS:,} can be: use a larger {key}, or smaller images"
            )
        return high, wide


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """All that a head or a target knows of an encoder.

    width: channels of a token; stride: pixels of the image side that one token stands for; patch: pixels of the
    side of the patch embedding (the finest grid on which cells can be hidden); grid: tokens high and wide;
    drops_hidden: only visible tokens come out; num_prefix: class token and registers.
    """

    width: int
    stride: int
    patch: int
    grid: tuple[int, int]
    drops_hidden: bool
    num_prefix: int = 0


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """All that a head knows of a target: a map of `channels`, one entry for every `stride` x `stride` pixels."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class PatchMask:
    """Which cells of the image grid are hidden. `hidden_BHW`: bool, True where the encoder must not see.

    `visible` is the number of visible cells in every sample, or None where it varies from sample to sample. It is
    a Python int so that the shapes of dropped tokens are known without asking the device.

    `draw_B` is an int64 in [0, 2**31) drawn for each sample, from which a part derives what it chooses at random under
    this mask (`mim.ops.seeding.scores`); None where nothing was drawn, as with a mask made by hand.
    """

    hidden_BHW: Tensor
    visible: int | None = None
    draw_B: Tensor | None = None

    @classmethod
    def from_tensor(cls, hidden: Tensor, batch: int) -> "PatchMask":
        """A mask made by hand: a bool grid or pixel map, (H, W) for all of the batch or (B, H, W).

        Counts the visible cells, which is a host sync. Raises ValueError for another shape or type.
        """
        if hidden.dtype != torch.bool:
            raise ValueError(f"a mask is a bool tensor, True where hidden, not {hidden.dtype}")
        if hidden.ndim == 2:
            hidden = repeat(hidden, "h w -> b h w", b=batch)
        if hidden.ndim != 3 or hidden.shape[0] != batch:
            raise ValueError(f"a mask has shape (H, W) or ({batch}, H, W), not {tuple(hidden.shape)}")
        counts = reduce((~hidden).long(), "b h w -> b", "sum").tolist()  # host sync: only on masks made by hand
        if min(counts) == 0 or max(counts) == hidden[0].numel():
            raise ValueError("a mask must hide at least one cell of every sample and leave at least one visible")
        return cls(hidden, counts[0] if len(set(counts)) == 1 else None)

    def rows(self, start: int, stop: int) -> "PatchMask":
        """The masks of samples start..stop-1."""
        draw_B = None if self.draw_B is None else self.draw_B[start:stop]
        return PatchMask(self.hidden_BHW[start:stop], self.visible, draw_B)

    def at(self, height: int, width: int) -> Tensor:
        """The mask on another grid, (B, height, width) bool.

        On a finer grid cells repeat; on a coarser one, a single hidden cell hides the whole larger one. Raises
        ValueError where the sizes do not divide.
        """
        own_height, own_width = self.hidden_BHW.shape[1:]
        if (own_height, own_width) == (height, width):
            return self.hidden_BHW
        if height % own_height == 0 and width % own_width == 0:
            return repeat(self.hidden_BHW, "b h w -> b (h fh) (w fw)", fh=height // own_height, fw=width // own_width)
        if own_height % height == 0 and own_width % width == 0:
            coarse = rearrange(self.hidden_BHW, "b (h fh) (w fw) -> b h w (fh fw)", h=height, w=width)
            return coarse.any(dim=-1)
        raise ValueError(f"a mask of {own_height}x{own_width} cells does not fit a grid of {height}x{width}")

    def coarsened(self, height: int, width: int) -> "PatchMask":
        """A mask made by hand, brought to a coarser grid with its visible cells counted anew (a host sync).

        An equal or finer grid needs no such step, and returns this mask as it is.
        """
        if self.hidden_BHW.shape[1] <= height and self.hidden_BHW.shape[2] <= width:
            return self
        return PatchMask.from_tensor(self.at(height, width), len(self.hidden_BHW))

    def kept_indices(self, height: int, width: int) -> Tensor:
        """Indices of the visible tokens of a grid, (B, N) int64 in row-major order.

        Raises ValueError where samples differ in their number of visible cells.
        """
        own_height, own_width = self.hidden_BHW.shape[1:]
        if self.visible is None or height < own_height or width < own_width:
            raise ValueError(
                "only a mask with one number of visible cells in every sample, on a grid no finer than the "
                "encoder's, can be dropped: use a mask of equal counts, or an encoder that replaces"
            )
        count = self.visible * (height // own_height) * (width // own_width)
        hidden_BL = rearrange(self.at(height, width), "b h w -> b (h w)")
        return hidden_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder says of an image.

    tokens_BND: patch tokens, all of them or, where kept_BN is given, the kept ones; grid: tokens high and wide of
    the full grid; kept_BN: indices of the kept tokens, None where dense; prefix_BKD: class token and registers; draw_B:
    the mask's, for a head that chooses among dropped places.
    """

    tokens_BND: Tensor
    grid: tuple[int, int]
    kept_BN: Tensor | None = None
    prefix_BKD: Tensor | None = None
    draw_B: Tensor | None = None

    def pooled(self, pool: Pool) -> Tensor:
        """One vector an image, (B, D): the `mean` of the patch tokens (prefix tokens left out), the `class` token, or
        `both`, one behind the other, (B, 2 D).

        Raises ValueError where the encoder has no class token.
        """
        if pool == "mean":
            return self.tokens_BND.mean(dim=1)
        if self.prefix_BKD is None:
            raise ValueError(f"pool {pool}: this encoder has no class token; use mean")
        class_BD = self.prefix_BKD[:, 0]
        return class_BD if pool == "class" else torch.cat([self.tokens_BND.mean(dim=1), class_BD], dim=1)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head answers: a map in the target's layout, and which cells it predicted (None: every hidden one).

    map_BCHW: (B, channels, height / stride, width / stride); predicted_BHW: bool on any grid that divides it.
    """

    map_BCHW: Tensor
    predicted_BHW: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What the model answers: the loss (scalar), the predicted map (B, C, H, W) and the mask it was made under."""

    loss: Tensor
    prediction: Tensor
    mask: PatchMask
