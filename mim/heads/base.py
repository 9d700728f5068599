"""Head: the family of parts that predict the target from an encoder's features."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from mim.registry import Component
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Head(Component, nn.Module, ABC, section="HEAD"):
    """Answers features with a map in the target's layout.

    A head that mixes tokens can fill the places an encoder dropped, and says `fills_dropped = True`. One that
    predicts each token alone has nothing to say about such a place, and is refused there. One that predicts hidden
    places alone says `hidden_only = True`: dropped features tell which those are, so it is refused on all others.

    `self.entries_per_side` is the number of target entries along one side of a token. Raises ValueError where the target is
    coarser than the encoder's tokens, or the encoder drops what this head cannot fill, or nothing where it must.
    """

    fills_dropped: ClassVar[bool] = False
    hidden_only: ClassVar[bool] = False

    def __init__(self, encoder: EncoderSpec, target: TargetSpec):
        super().__init__()
        if encoder.drops_hidden and not self.fills_dropped:
            fillers = sorted(name for name, part in Head.members().items() if part.fills_dropped)
            raise ValueError(
                f"HEAD.name {self.name} predicts each token alone and has nothing to say about a place that was "
                f"dropped: use HEAD.name {' or '.join(fillers)}, or ENCODER.hidden replace"
            )
        if self.hidden_only and not encoder.drops_hidden:
            others = sorted(name for name, part in Head.members().items() if not part.hidden_only)
            raise ValueError(
                f"HEAD.name {self.name} predicts hidden places alone, and only an encoder that drops tells which those "
                f"are: use ENCODER.hidden drop, or HEAD.name {' or '.join(others)}"
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
        """The repeated blocks in order: the units of activation checkpointing."""
        return []
