"""UNet: SparK's light decoder, from the coarsest map of an encoder to ever finer ones.

Shapes: B batch, N entries of a map, D width, h w entries of a map high and wide, f entries along a coarser one.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mim.heads.base import Head
from mim.io.checks import at_least
from mim.ops.truncated_normal import trunc_normal_
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec

DensifyNorm = Literal["layer", "batch", "none"]
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": partial(nn.LayerNorm, eps=1e-6),
    "batch": nn.BatchNorm1d,
    "none": nn.Identity,
}


class Densify(nn.Module):
    """Normalises the visible entries of a map, puts an embedding of its own in all others, and maps to another width.

    Args:
        source: channels of the map.
        width: channels that come out.
        kernel: side of the convolution; one of side 1 between equal widths is left out.
        norm: over the channels of an entry (`layer`), or over the visible entries of the batch (`batch`).
        fills: whether the encoder drops entries.
    """

    def __init__(self, source: int, width: int, kernel: int, norm: DensifyNorm, fills: bool):
        super().__init__()
        self.norm, self.by_channel = _NORMS[norm](source), norm == "batch"
        self.mask_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, source), 0.02, 0.02)) if fills else None
        self.proj: nn.Module = nn.Identity()
        if kernel > 1 or source != width:
            self.proj = nn.Conv2d(source, width, kernel, padding=kernel // 2)

    def forward(self, tokens_BND: Tensor, kept_BN: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """The filled map (B, width, h, w).

        Args:
            tokens_BND: the visible entries.
            kept_BN: their indices in the grid; None where all are visible.
        """
        tokens_BND = self.norm(tokens_BND.mT).mT if self.by_channel else self.norm(tokens_BND)
        if kept_BN is not None and self.mask_token is not None:
            batch, _, source = tokens_BND.shape
            filler_BND = self.mask_token.to(tokens_BND.dtype).expand(batch, math.prod(grid), source)
            tokens_BND = filler_BND.scatter(1, kept_BN[..., None].expand(-1, -1, source), tokens_BND)
        return self.proj(rearrange(tokens_BND, "b (h w) d -> b d h w", h=grid[0]))


class UpBlock(nn.Module):
    """Doubles height and width by a transposed convolution; then two convolutions, the second to `narrow` channels."""

    def __init__(self, width: int, narrow: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm1, self.act = nn.BatchNorm2d(width), nn.ReLU6()
        self.conv2 = nn.Conv2d(width, narrow, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        map_BDhw = self.act(self.norm1(self.conv1(self.up(map_BDhw))))
        return self.norm2(self.conv2(map_BDhw))


class UNet(Head, name="unet"):
    """Fills each map of the encoder with an embedding of its own, and decodes from the coarsest map to fine ones.

    A block doubles height and width and halves the channels; before it the encoder's map of that stride, where there is
    one, is added. A linear map then predicts the target. Where the encoder replaces hidden cells, nothing is filled.

    Source: SparK (Tian et al., arXiv:2301.03580), pretrain/spark.py and pretrain/decoder.py. Differs from: statistics
    of BatchNorm are those of the DATA.batch_size images of one forward pass, whatever the number of devices, where
    SparK's devices share them (SyncBatchNorm); the coarsest map is the encoder's output, behind its last norm where it
    has one.

    Args:
        width: channels of the coarsest map in the decoder, a multiple of 2 ** depth.
        depth: number of blocks; 0 means as many as lead to TARGET.stride, as published. After fewer the linear map
            predicts several entries for each place (PixelShuffle).
        finest_stride: stride, in pixels, of the finest map of the encoder that is added, at least 1. SparK: 4, without
            the stem of a ResNet.
        densify_norm: norm of the encoder's maps, over visible places: `layer` (SparK for ConvNeXt), `batch` (SparK for
            ResNet), or `none`.

    Raises ValueError for more blocks than lead to TARGET.stride, for none where the encoder drops hidden tokens, and
    for a width that cannot be halved so often.
    """

    fills_dropped = True

    def __init__(
        self,
        encoder: EncoderSpec,
        target: TargetSpec,
        *,
        width: int = 768,
        depth: int = 0,
        finest_stride: int = 4,
        densify_norm: DensifyNorm = "layer",
    ):
        super().__init__(encoder, target)
        at_least("HEAD", 1, width=width, finest_stride=finest_stride)
        depth = self._blocks_of(depth, width)
        self.skips = _added_stages(encoder, depth, finest_stride)
        self.stages = tuple(self.skips.values())
        sources = {0: encoder.width, **{level: encoder.stages[stage].width for level, stage in self.skips.items()}}
        self.densify = nn.ModuleDict(
            {
                str(level): Densify(source, width // 2**level, 3 if level else 1, densify_norm, encoder.drops_hidden)
                for level, source in sources.items()
            }
        )
        self.layers = nn.ModuleList(UpBlock(width // 2**level, width // 2 ** (level + 1)) for level in range(depth))
        side = self.entries_per_side // 2**depth
        self.predict = nn.Conv2d(width // 2**depth, side**2 * target.channels, kernel_size=1)
        self.shuffle = nn.PixelShuffle(side)
        self._initialise()

    def _blocks_of(self, depth: int, width: int) -> int:
        """The number of blocks for HEAD.depth."""
        at_least("HEAD", 0, depth=depth)
        stride, side = self.encoder.stride, self.entries_per_side
        most = (side & -side).bit_length() - 1  # how often it can be divided by 2
        if depth > most:
            raise ValueError(
                f"HEAD.depth is {depth}: each block halves the stride, and the encoder's stride of {stride} can be "
                f"halved at most {most} times on the way to TARGET.stride {self.target.stride}"
            )
        depth = depth or most
        if depth == 0 and self.encoder.drops_hidden:
            raise ValueError(
                f"HEAD.name unet has no block between the encoder's stride of {stride} and TARGET.stride "
                f"{self.target.stride}, so that hidden places would not see visible ones: use a target of at most half "
                "the encoder's stride, or HEAD.name transformer"
            )
        if width % 2**depth:
            raise ValueError(
                f"HEAD.width is {width}: each of {depth} blocks halves it, so use a multiple of {2**depth}"
            )
        return depth

    def forward(self, features: Features) -> Prediction:
        maps = dict(zip(self.skips, features.stages_BDhw, strict=True))
        map_BDhw = self.densify["0"](features.tokens_BND, features.kept_BN, features.grid)
        for level, block in enumerate(self.layers):
            if level in maps:
                map_BDhw = map_BDhw + self._skip(level, maps[level], features)
            map_BDhw = block(map_BDhw)
        return Prediction(self.shuffle(self.predict(map_BDhw)))

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def _skip(self, level: int, map_BDhw: Tensor, features: Features) -> Tensor:
        """The encoder's map of a level, filled and mapped to the decoder's width."""
        kept_BN = None if features.kept_BN is None else _finer(features.kept_BN, features.grid[1], 2**level)
        tokens_BND = rearrange(map_BDhw, "b d h w -> b (h w) d")
        if kept_BN is not None:
            tokens_BND = tokens_BND.gather(1, kept_BN[..., None].expand(-1, -1, tokens_BND.shape[2]))
        return self.densify[str(level)](tokens_BND, kept_BN, (map_BDhw.shape[2], map_BDhw.shape[3]))

    def _initialise(self) -> None:
        """As in SparK, which leaves the maps to other widths as PyTorch makes them."""
        for layer in [*self.layers.modules(), self.predict]:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Conv2d):
                trunc_normal_(layer.weight, 0.02)
            if isinstance(layer, (nn.ConvTranspose2d, nn.Conv2d)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _added_stages(encoder: EncoderSpec, depth: int, finest_stride: int) -> dict[int, int]:
    """The stage that is added before a block, by the number of the block: the last one of its stride."""
    last = {stage.stride: number for number, stage in enumerate(encoder.stages) if stage.stride >= finest_stride}
    strides = {level: encoder.stride / 2**level for level in range(1, depth)}
    return {level: last[stride] for level, stride in strides.items() if stride in last}


def _finer(kept_BN: Tensor, wide: int, factor: int) -> Tensor:
    """Indices of the same places in a grid that is finer by a factor on each axis, in any order.

    Args:
        wide: entries of the coarser grid from left to right.
    """
    steps_f = torch.arange(factor, device=kept_BN.device)
    rows_BNf = (kept_BN // wide * factor)[..., None] + steps_f
    columns_BNf = (kept_BN % wide * factor)[..., None] + steps_f
    kept_BNff = rows_BNf[..., :, None] * (wide * factor) + columns_BNf[..., None, :]
    return rearrange(kept_BNff, "b n p q -> b (n p q)")
