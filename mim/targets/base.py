"""Target: the family of parts that say what is predicted.

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from mim.registry import Component
from mim.structures import EncoderSpec, ImageSpec, TargetSpec


class Target(Component, nn.Module, ABC, section="TARGET"):
    """A map made from the image alone: `spec.channels` values for every `spec.stride` x `spec.stride` pixels."""

    spec: TargetSpec

    def __init__(self, image: ImageSpec, encoder: EncoderSpec):
        super().__init__()
        self.image, self.encoder = image, encoder

    @abstractmethod
    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The target of normalised images, (B, channels, height / stride, width / stride)."""

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor | None:
        """A predicted map as normalised images (B, C, H, W), or None where this target is no picture.

        Where that needs statistics of the true image, `borrowed` says in words which.
        """
        return None

    @property
    def borrowed(self) -> str:
        """What `to_pixels` takes from the true image, in words for a caption; empty where nothing."""
        return ""
