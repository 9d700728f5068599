"""Fourier: the spectrum of each cell of the image, to be added to another target (A2MIM).

Shapes: B batch, C channels, H W pixels of the image, h w cells, P entries along a cell's side, F frequencies of a cell
that no other one mirrors, V = P * P values of a cell's spectrum.
"""

from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mim.structures import EncoderSpec, ImageSpec, TargetSpec
from mim.targets.pixels import Pixels


class Fourier(Pixels, name="fourier"):
    """Real and imaginary parts of the two-dimensional Fourier transform of each cell and channel.

    The transform is that of what `pixels` predicts with the same keys, scaled so that it keeps the sum of squares. Of a
    frequency and its mirror image, which holds the same values, one stays, times the square root of 2. So a cell has
    as many values as entries, and their squared error is that of the entries: use a loss such as l1. The channels are
    the real parts of channel 1 of the image, row by row, then its imaginary parts but those that are always 0; then
    those of channel 2.

    Source: A2MIM (Li et al., arXiv:2205.13943), Westlake-AI/openmixup, A2MIMHead. Differs from: there the whole image
    is transformed, with the prediction of the same head pasted in where pixels are hidden, so that no output is
    added; spectra are averaged over the batch; and the squared difference is weighed by its own log(1 + |difference|)
    over the largest one. Its factor is 0.1 (ViT) or 0.5 (ResNet-50).

    Args:
        cell: side of a cell in pixels; it divides the encoder's stride. 0: the encoder's stride.
    """

    outside = True  # compilers do not fuse Fourier transforms
    half_F: Tensor
    mirror_F: Tensor
    whole_F: Tensor
    imaginary_I: Tensor
    single_V: Tensor

    def __init__(self, image: ImageSpec, encoder: EncoderSpec, *, cell: int = 0, **shared: Any):
        super().__init__(image, encoder, **shared)
        cell = cell or encoder.stride
        image.grid(cell, "TARGET.cell")
        if encoder.stride % cell or cell % self.stride:
            raise ValueError(
                f"TARGET.cell {cell} must divide the encoder's stride of {encoder.stride} pixels a token, and be a "
                f"multiple of TARGET.stride {self.stride}"
            )
        self.entries = cell // self.stride
        self.spec = TargetSpec(image.channels * self.entries**2, cell)
        self._register_frequencies(self.entries)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        wide = torch.promote_types(img_BCHW.dtype, torch.float32)
        map_BCHW = super().forward(img_BCHW).to(wide)
        cells_BChwPP = rearrange(map_BCHW, "b c (h p) (w q) -> b c h w p q", p=self.entries, q=self.entries)
        spectrum_BChwF = torch.fft.rfft2(cells_BChwPP, norm="ortho").flatten(-2)[..., self.half_F]
        parts_BChwV = torch.cat([spectrum_BChwF.real, spectrum_BChwF.imag[..., self.imaginary_I]], dim=-1)
        scaled_BChwV = torch.where(self.single_V, parts_BChwV, parts_BChwV * 2**0.5)
        return rearrange(scaled_BChwV, "b c h w v -> b (c v) h w")

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor:
        wide = torch.promote_types(map_BChw.dtype, torch.float32)
        scaled_BChwV = rearrange(map_BChw.to(wide), "b (c v) h w -> b c h w v", v=self.entries**2)
        parts_BChwV = torch.where(self.single_V, scaled_BChwV, scaled_BChwV * 0.5**0.5)
        real_BChwF, imaginary_BChwI = parts_BChwV.tensor_split([len(self.half_F)], dim=-1)
        imaginary_BChwF = torch.zeros_like(real_BChwF).index_copy(-1, self.imaginary_I, imaginary_BChwI)
        values_BChwF = torch.complex(real_BChwF, imaginary_BChwF)
        spectrum_BChwV = torch.zeros_like(parts_BChwV, dtype=values_BChwF.dtype)
        spectrum_BChwV[..., self.mirror_F] = values_BChwF.conj()
        spectrum_BChwV[..., self.whole_F] = values_BChwF
        cells_BChwPP = torch.fft.ifft2(spectrum_BChwV.unflatten(-1, (self.entries, self.entries)), norm="ortho").real
        return super().to_pixels(rearrange(cells_BChwPP, "b c h w p q -> b c (h p) (w q)"), img_BCHW)

    def _register_frequencies(self, side: int) -> None:
        """Which frequencies of a cell of side x side entries stay, where they and their mirror images lie in a whole
        spectrum, and which are their own mirror image.
        """
        columns = side // 2 + 1  # of a real transform
        own_mirror = {0, side / 2}
        frequencies = [
            (row, column)
            for row, column in product(range(side), range(columns))
            if column not in own_mirror or row <= side / 2  # the other half of these columns mirrors this one
        ]
        single = [row in own_mirror and column in own_mirror for row, column in frequencies]
        tensors = {
            "half_F": [row * columns + column for row, column in frequencies],
            "whole_F": [row * side + column for row, column in frequencies],
            "mirror_F": [-row % side * side + -column % side for row, column in frequencies],
            "imaginary_I": [index for index, alone in enumerate(single) if not alone],  # the others are real
            "single_V": single + [False] * single.count(False),
        }
        for name, values in tensors.items():
            dtype = torch.bool if name == "single_V" else torch.long
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)
