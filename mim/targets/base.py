"""Target: the base class of the parts that define what is predicted.

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from mim.encoders.base import Encoder
from mim.registry import Component
from mim.structures import EncoderSpec, ImageSpec, TargetSpec


class Network(NamedTuple):
    """An encoder from a file, with what is known of the images that it was trained on."""

    encoder: Encoder
    mean: tuple[float, ...] | None  # of its images; None where the file does not say
    std: tuple[float, ...] | None
    checksum: str  # SHA-256 of the file; empty where the network has no weights, on the meta device


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetContext:
    """What a target may be made of: see Target.of."""

    image: ImageSpec
    encoder: Encoder  # the student, whose features the head sees
    mean: tuple[float, ...]  # with which images are normalised
    std: tuple[float, ...]
    # reads a file of weights: (path, model of timm or empty, images); raises ValueError where it cannot
    load: Callable[[str, str, ImageSpec], Network]


class Lesson(NamedTuple):
    """What a target gives for one step."""

    map_BChw: Tensor  # the target, without gradient
    # of weights of the target's own; it is added to the model's. None where it has none, and in eval mode
    loss: Tensor | None = None
    attention_BHW: Tensor | None = None  # how much a network attends to each of its patches


class Target(Component, nn.Module, ABC, section="TARGET"):
    """A map computed from the image alone: `spec.channels` values for `spec.stride` x `spec.stride` pixels.

    It has no gradient. A target may own a network. One that stays as it is, is kept in a `FrozenNetwork`; one that
    changes is a submodule, which is saved with the model: it moves in `after_step`, or is trained by the loss that
    `learn` gives.

    Attributes:
        spec: channels and stride of the map; set by the constructor.
        outside: whether the map is computed outside of the compiled step, as networks and Fourier transforms are.
        moving: whether the target of an image changes during a run; evaluations then watch whether it collapses.
        metric_names: the keys of `metrics`, in their order. A target that has some is computed outside.
    """

    outside: ClassVar[bool] = False
    moving: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = ()
    spec: TargetSpec

    def __init__(self, image: ImageSpec, encoder: EncoderSpec):
        super().__init__()
        self.image, self.encoder = image, encoder

    @classmethod
    def of(cls, context: TargetContext, **keys: Any) -> Self:
        """The target with these config keys. One that needs more than the two specs overrides it."""
        return cls(context.image, context.encoder.spec, **keys)

    @abstractmethod
    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The target of normalised images, (B, channels, height / stride, width / stride)."""

    def learn(self, img_BCHW: Tensor, attend: bool = False) -> "Lesson":
        """What a step learns from: the target, without gradient.

        Args:
            attend: whether a masker needs `Lesson.attention_BHW`, which a target gives that `attends`.
        """
        with torch.no_grad():
            return Lesson(self(img_BCHW))

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor | None:
        """A predicted map as normalised images (B, C, H, W), or None where this target is not an image.

        `img_BCHW` are the true normalised images, and `borrowed` says which of their statistics this uses.
        """
        return None

    @property
    def borrowed(self) -> str:
        """The statistics of the true image that `to_pixels` uses, as text for a caption; empty where it uses none."""
        return ""

    def by_label(self, map_BChw: Tensor) -> dict[str, tuple["Target", Tensor]]:
        """Each target that a map holds, with its own map, by its label; a single target has none."""
        return {"": (self, map_BChw)}

    @property
    def title(self) -> str:
        """What reports call the target."""
        return self.name

    @property
    def attends(self) -> bool:
        """Whether `learn` can say what a network attends to."""
        return False

    def frozen_networks(self) -> list["FrozenNetwork"]:
        """The networks of this target that never change: on the device, but not trained, copied or saved."""
        return []

    def blocks(self) -> list[nn.Module]:
        """The blocks of a network that is a submodule: with FSDP2, each is gathered by itself."""
        return []

    def start(self, encoder: Encoder) -> None:
        """Called once when a run begins, with the encoder that it begins with."""

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Called after each optimizer step. All ranks call it with equal weights, or with their shards of them.

        Args:
            encoder: the student after the step.
            progress: share of the run's steps that are done, above 0 and at most 1.
        """

    def metrics(self, map_BChw: Tensor) -> dict[str, Tensor]:
        """Scalars that are logged beside the loss of a step, from the target of its images. No host sync."""
        return {}


class FrozenNetwork:
    """A network that is never trained, copied or saved. It follows the images to their device.

    Args:
        network: put into eval mode, without gradients.
        checksums: SHA-256 of the files that it was read from, by path; a run that is resumed must have the same.
    """

    def __init__(self, network: nn.Module, checksums: dict[str, str] | None = None):
        self.network, self.checksums = network.eval().requires_grad_(False), checksums or {}

    def __call__(self, img_BCHW: Tensor, **options: Any) -> Any:
        """What the network makes of images, without gradient."""
        with torch.no_grad():
            return self.network(self.beside(img_BCHW), **options)

    def beside(self, img_BCHW: Tensor) -> Tensor:
        """The images, with the network on their device."""
        first = next(self.network.parameters(), None)
        if first is not None and first.device != img_BCHW.device:
            self.network.to(img_BCHW.device)
        return img_BCHW

    def __deepcopy__(self, memo: dict) -> "FrozenNetwork":
        return self
