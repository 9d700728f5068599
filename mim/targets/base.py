"""Target: the base class of the parts that define what is predicted.

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mim.registry import Component
from mim.structures import EncoderSpec, ImageSpec, TargetSpec


class Target(Component, nn.Module, ABC, section="TARGET"):
    """A map computed from the image alone: `spec.channels` values for `spec.stride` x `spec.stride` pixels."""

    spec: TargetSpec

    def __init__(self, image: ImageSpec, encoder: EncoderSpec):
        super().__init__()
        self.image, self.encoder = image, encoder

    @abstractmethod
    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The target of normalised images, (B, channels, height / stride, width / stride)."""

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor | None:
        """A predicted map as normalised images (B, C, H, W), or None where this target is not an image.

        `img_BCHW` are the true normalised images, and `borrowed` says which of their statistics this uses.
        """
        return None

    @property
    def borrowed(self) -> str:
        """The statistics of the true image that `to_pixels` uses, as text for a caption; empty where it uses none."""
        return ""
