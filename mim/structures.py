"""The values that parts of the program pass to each other.

Shapes: B batch, C channels, H W height and width of the named grid or image, N tokens, D width, K prefix tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

Pool = Literal["mean", "class", "both"]
LabelKind = Literal["class", "classes", "number", "mask"]
MOST_CELLS = 2**24  # of an image; a square of 16,384 px in cells of 16 px has a 16th of that


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The images that a model is built for: channels, and height and width in pixels."""

    channels: int
    height: int
    width: int

    def grid(self, cell: int, key: str, change: str = "") -> tuple[int, int]:
        """Cells (high, wide) of side `cell` pixels.

        Args:
            key: what a message calls `cell`.
            change: what else a user can change, as in `another encoder`; by default another `key`.

        Raises ValueError where `cell` does not fit.
        """
        if cell < 1:
            raise ValueError(f"{key} is {cell}: it must be at least 1 pixel")
        for axis, size in (("height", self.height), ("width", self.width)):
            if size % cell:
                below, above = size - size % cell, size + cell - size % cell
                sides = f"{below} or {above}" if below else f"{above}"
                raise ValueError(
                    f"{key} {cell} does not divide the image {axis} {size}: use a {axis} of {sides}, or "
                    f"{change or f'another {key}'}"
                )
        high, wide = self.height // cell, self.width // cell
        if high * wide > MOST_CELLS:
            raise ValueError(
                f"{key} {cell} divides the image of {self.height}x{self.width} into {high * wide:,} cells, and at most "
                f"{MOST_CELLS:,} are allowed: use larger cells, or smaller images"
            )
        return high, wide


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What the labels of a data set are."""

    kind: LabelKind  # one class, several at once, a number (or several), or a class a pixel (a mask)
    names: tuple[str, ...]  # of the classes, or of the columns of numbers

    @property
    def outputs(self) -> int:
        """The numbers that answer one label: one for each class or column of numbers."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A feature map of an encoder: its channels, and pixels of the image side for one entry."""

    width: int
    stride: int


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """All that a head or a target knows of an encoder."""

    width: int  # channels of a token
    stride: int  # pixels of the image side for one token
    patch: int  # side of an embedded patch in pixels; patches are the finest cells that can be hidden
    grid: tuple[int, int]  # tokens high and wide
    drops_hidden: bool  # whether only visible tokens come out
    num_prefix: int = 0  # class token and registers ahead of the patch tokens
    stages: tuple[StageSpec, ...] = ()  # the maps that a head can ask for, the finest first; none by default


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """All that a head knows of a target: a map of `channels`, with one entry for `stride` x `stride` pixels."""

    channels: int
    stride: int
    distribution: bool = False  # whether the channels of an entry are probabilities, at least 0 and with a sum of 1


@dataclass(frozen=True, slots=True)
class PatchMask:
    """Which cells of the image grid are hidden."""

    hidden_BHW: Tensor  # bool on any grid of cells, True where the encoder must not see
    visible: int | None = None  # visible cells of each sample, a Python int to save a host sync; None where they differ
    # a random int64 in [0, 2**31) for each sample, from which a part derives random choices by mim.ops.seeding.scores
    draw_B: Tensor | None = None  # None for a mask made by hand
    # bool on the same grid: the hidden cells that the loss counts, at least one in each sample; None: all hidden ones
    predicted_BHW: Tensor | None = None
    missing_BHW: Tensor | None = None  # bool on the same grid: cells with missing pixels, which no loss counts

    @classmethod
    def from_tensor(cls, hidden: Tensor, batch: int) -> "PatchMask":
        """A mask made by hand: a bool grid or pixel map, (H, W) for the whole batch or (B, H, W). A host sync.

        Raises ValueError for another shape or type, and where a sample has no hidden or no visible cell.
        """
        if hidden.dtype != torch.bool:
            raise ValueError(f"a mask is a bool tensor, True where hidden, not {hidden.dtype}")
        if hidden.ndim == 2:
            hidden = repeat(hidden, "h w -> b h w", b=batch)
        if hidden.ndim != 3 or hidden.shape[0] != batch:
            raise ValueError(f"a mask has shape (H, W) or ({batch}, H, W), not {tuple(hidden.shape)}")
        counts = reduce((~hidden).long(), "b h w -> b", "sum").tolist()  # host sync
        if min(counts) == 0 or max(counts) == hidden[0].numel():
            raise ValueError("a mask must hide at least one cell of every sample and leave at least one visible")
        return cls(hidden, counts[0] if len(set(counts)) == 1 else None)

    def rows(self, start: int, stop: int) -> "PatchMask":
        """The masks of samples start..stop-1."""
        return self.samples(slice(start, stop))

    def samples(self, index: Sequence[int] | slice | Tensor) -> "PatchMask":
        """The masks of some samples, in the order of `index`."""
        index = list(index) if isinstance(index, Sequence) else index
        return self._each(lambda field_B: field_B[index])

    def to(self, device: torch.device) -> "PatchMask":
        """The same masks on a device."""
        return self._each(lambda field_B: field_B.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PatchMask":
        """Every tensor changed in the same way; samples keep their number of visible cells."""
        others = (self.draw_B, self.predicted_BHW, self.missing_BHW)
        draw_B, predicted_BHW, missing_BHW = (None if field is None else change(field) for field in others)
        return PatchMask(change(self.hidden_BHW), self.visible, draw_B, predicted_BHW, missing_BHW)

    def with_missing(self, pixels_BHW: Tensor | None) -> "PatchMask":
        """The mask with the missing pixels of its images, on any grid that its own divides; None for none.

        Where an image has several masks, they are in neighbouring rows.
        """
        if pixels_BHW is None:
            return self
        cells_BHW = _on_grid(pixels_BHW, *self.hidden_BHW.shape[1:])
        copies = len(self.hidden_BHW) // len(cells_BHW)
        return replace(self, missing_BHW=repeat(cells_BHW, "b h w -> (b copies) h w", copies=copies))

    def at(self, height: int, width: int) -> Tensor:
        """The mask on another grid, (B, height, width) bool: a coarser cell is hidden where any of its parts is.

        Raises ValueError where the sizes do not divide.
        """
        return _on_grid(self.hidden_BHW, height, width)

    def predicted_at(self, height: int, width: int) -> Tensor:
        """The hidden cells that the loss counts, on another grid as in `at`."""
        return _on_grid(self.hidden_BHW if self.predicted_BHW is None else self.predicted_BHW, height, width)

    def complete_at(self, height: int, width: int) -> Tensor | None:
        """The cells without missing pixels, on another grid; None where nothing is known of missing pixels."""
        return None if self.missing_BHW is None else ~_on_grid(self.missing_BHW, height, width)

    def coarsened(self, height: int, width: int) -> "PatchMask":
        """The mask on a coarser grid, its visible cells counted again (a host sync); on a finer grid itself."""
        if self.hidden_BHW.shape[1] <= height and self.hidden_BHW.shape[2] <= width:
            return self
        coarse = PatchMask.from_tensor(self.at(height, width), len(self.hidden_BHW))
        predicted_BHW = None if self.predicted_BHW is None else self.predicted_at(height, width)
        missing_BHW = None if self.missing_BHW is None else _on_grid(self.missing_BHW, height, width)
        return replace(coarse, draw_B=self.draw_B, predicted_BHW=predicted_BHW, missing_BHW=missing_BHW)

    def kept_indices(self, height: int, width: int) -> Tensor:
        """Indices of the visible tokens of a grid, (B, N) int64 in row-major order.

        Raises ValueError where samples differ in their number of visible cells, or the mask is finer than the grid.
        """
        high, wide = self.hidden_BHW.shape[1:]
        if self.visible is None or height < high or width < wide:
            raise ValueError(
                "an encoder drops hidden tokens only under a mask that has the same number of visible cells in every "
                "sample, on a grid no finer than its own: use a mask of equal counts, or an encoder that replaces"
            )
        count = self.visible * (height // high) * (width // wide)
        hidden_BL = rearrange(self.at(height, width), "b h w -> b (h w)")
        return hidden_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def _on_grid(cells_BHW: Tensor, height: int, width: int) -> Tensor:
    """A bool map on another grid, (B, height, width): a coarser cell is True where any of its parts is."""
    high, wide = cells_BHW.shape[1:]
    if (high, wide) == (height, width):
        return cells_BHW
    if height % high == 0 and width % wide == 0:
        return repeat(cells_BHW, "b h w -> b (h fh) (w fw)", fh=height // high, fw=width // wide)
    if high % height == 0 and wide % width == 0:
        parts_BHWF = rearrange(cells_BHW, "b (h fh) (w fw) -> b h w (fh fw)", h=height, w=width)
        return parts_BHWF.any(dim=-1)
    raise ValueError(f"a mask of {high}x{wide} cells does not fit a grid of {height}x{width}")


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a batch of images."""

    tokens_BND: Tensor  # patch tokens: those of the full grid, or only the kept ones
    grid: tuple[int, int]  # tokens high and wide of the full grid
    kept_BN: Tensor | None = None  # indices of the kept tokens in the grid; None where tokens_BND has all of them
    prefix_BKD: Tensor | None = None  # class token and registers
    draw_B: Tensor | None = None  # that of the mask, for a head that chooses among dropped tokens
    stages_BDhw: tuple[Tensor, ...] = ()  # the maps that the head asked for, in its order; 0 where hidden and dropped

    def pooled(self, pool: Pool) -> Tensor:
        """One vector an image: the `mean` of the patch tokens (B, D), the `class` token (B, D), or `both` (B, 2 D).

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
    """The output of a head."""

    map_BCHW: Tensor  # in the target's layout, (B, channels, height / stride, width / stride)
    predicted_BHW: Tensor | None = None  # bool on any grid that divides it: the predicted cells; None: all hidden ones


@dataclass(frozen=True, slots=True)
class Output:
    """The output of the model: the loss (scalar), the predicted map (B, C, H, W) and the mask.

    Where an image has several masks, B counts masks.
    """

    loss: Tensor
    prediction: Tensor
    mask: PatchMask
    metrics: dict[str, Tensor] = field(default_factory=dict)  # scalars to log, such as the loss of each target
