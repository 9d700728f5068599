"""Sparse: convolutional nets compute on visible places alone.

Shapes: B batch, C channels, H W pixels, V visible cells, D width, N visible places, h w entries of a map.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mim.encoders.hiding.base import Way, whole
from mim.encoders.hiding.layout import Layout
from mim.encoders.hiding.place_check import objection_to
from mim.encoders.hiding.sparse_layers import SparseLayers
from mim.encoders.hiding.visible_places import VisiblePlaces
from mim.structures import Features, PatchMask


class Sparse(Way):
    """Computes every layer of a convolutional net on visible places alone; hidden pixels are never read.

    A convolution sees zeros at hidden places. Norms, squeeze-and-excitation, pools and attention over the whole map see
    visible places only, so running statistics are theirs too.

    Source: SparK (Tian et al., arXiv:2301.03580), pretrain/encoder.py; ConvNeXt V2 (Woo et al., arXiv:2301.00808),
    models/convnextv2_sparse.py. Differs from SparK where a pool pads: a hidden place is to it what a place beyond the
    border is, while SparK's pools see a zero. Behind a ReLU both are equal for a maximum.
    """

    hiding = "sparse"

    def __init__(self, backbone: nn.Module, layout: Layout):
        super().__init__(backbone, layout)
        self.cell = max(layout.stride, *(stage.stride for stage in layout.stages))
        self.layers = SparseLayers(backbone)

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return objection_to(backbone)

    def forward(
        self, backbone: nn.Module, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        grid = (img_BCHW.shape[2] // self.cell, img_BCHW.shape[3] // self.cell)
        self.layers.visible = visible = VisiblePlaces(
            mask, grid, self.cell
        )  # stays for recomputation in the backward pass
        features = whole(backbone, self.layout, visible.gather(img_BCHW), stages)
        kept_BN = self._kept(visible)
        maps = tuple(visible.scatter(places_BDN1) for places_BDN1 in features.stages_BDhw)
        return replace(features, grid=self.layout.grid, kept_BN=kept_BN, draw_B=mask.draw_B, stages_BDhw=maps)

    def _kept(self, visible: VisiblePlaces) -> Tensor:
        """Indices of the visible places of the last map in its grid, in the order of the features."""
        high, wide = self.layout.grid
        index_hw = torch.arange(high * wide, device=visible.kept_BV.device).view(1, 1, high, wide)
        return visible.gather(index_hw.expand(len(visible.kept_BV), -1, -1, -1))[:, 0, :, 0]

    def forget(self) -> None:
        self.layers.visible = None
