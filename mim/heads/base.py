"""Head: the base class of the parts that predict the target from an encoder's features."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from mim.registry import Component
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Head(Component, nn.Module, ABC, section="HEAD"):
    """Predicts a map in the target's layout; `entries_per_side` is the number of target entries a token is wide.

    A subclass with `fills_dropped = True` also predicts the tokens that an encoder dropped. One with
    `hidden_only = True` predicts hidden tokens only, so it needs an encoder that drops them.

    `stages` are the maps of the encoder, by number in EncoderSpec.stages, that come as Features.stages_BDhw; a subclass
    that reads some sets it.

    Raises ValueError where the target's stride does not divide the encoder's, and where the encoder's way of hiding
    does not fit the head.
    """

    fills_dropped: ClassVar[bool] = False
    hidden_only: ClassVar[bool] = False
    stages: tuple[int, ...] = ()

    def __init__(self, encoder: EncoderSpec, target: TargetSpec):
        super().__init__()
        heads = sorted(Head.members().items())
        if encoder.drops_hidden and not self.fills_dropped:
            fillers = " or ".join(name for name, part in heads if part.fills_dropped)
            raise ValueError(
                f"HEAD.name {self.name} predicts each token alone, so it cannot predict a token that was dropped: use "
                f"HEAD.name {fillers}, or ENCODER.hidden replace"
            )
        if self.hidden_only and not encoder.drops_hidden:
            others = " or ".join(name for name, part in heads if not part.hidden_only)
            raise ValueError(
                f"HEAD.name {self.name} predicts hidden tokens only, and needs an encoder that drops them: use "
                f"ENCODER.hidden drop, or HEAD.name {others}"
            )
        if encoder.stride % target.stride:
            raise ValueError(
                f"TARGET.stride {target.stride} does not divide the encoder's stride of {encoder.stride} pixels a token"
            )
        self.encoder, self.target = encoder, target
        self.entries_per_side = encoder.stride // target.stride

    @abstractmethod
    def forward(self, features: Features) -> Prediction:
        """The predicted map, (B, channels, height / stride, width / stride)."""

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first block first: the units of activation checkpointing."""
        return []
