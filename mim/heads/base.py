"""Head: the base class of the parts that predict the target from an encoder's features."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from mim.heads.fusion import Fusion, fused_stages
from mim.registry import Component
from mim.structures import EncoderSpec, Features, Prediction, TargetSpec


class Head(Component, nn.Module, ABC, section="HEAD"):
    """Predicts a map in the target's layout; `entries_per_side` is the number of target entries a token is wide.

    A subclass with `fills_dropped = True` also predicts the tokens that an encoder dropped. One with
    `hidden_only = True` predicts hidden tokens only, so it needs an encoder that drops them.

    The attribute `stages` names the maps of the encoder, by number in EncoderSpec.stages, that come as
    Features.stages_BDhw. A subclass that reads some sets it. One that reads one map passes on the argument `stages` and
    reads `self.fused(features)`.

    Args:
        stages: numbers of stages that are fused with the encoder's last tokens (MFF), from 0 for the first, or from the
            end with -1 for the last, which is always in; `[]` reads the last tokens alone. An encoder of blocks of one
            width has a stage for each block.

    Raises ValueError where the target's stride does not divide the encoder's, where the encoder's way of hiding does
    not fit the head, and for stages that the encoder does not have.
    """

    fills_dropped: ClassVar[bool] = False
    hidden_only: ClassVar[bool] = False
    stages: tuple[int, ...] = ()

    def __init__(self, encoder: EncoderSpec, target: TargetSpec, *, stages: tuple[int, ...] = ()):
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
                f"ENCODER.hidden drop or sparse, or HEAD.name {others}"
            )
        if encoder.stride % target.stride:
            raise ValueError(
                f"TARGET.stride {target.stride} does not divide the encoder's stride of {encoder.stride} pixels a token"
            )
        self.encoder, self.target = encoder, target
        self.entries_per_side = encoder.stride // target.stride
        self.stages = fused_stages(encoder, stages)
        self.fusion = Fusion(encoder, self.stages) if self.stages else None

    @abstractmethod
    def forward(self, features: Features) -> Prediction:
        """The predicted map, (B, channels, height / stride, width / stride)."""

    def fused(self, features: Features) -> Features:
        """The features with the stages of `stages` fused into their tokens."""
        return features if self.fusion is None else self.fusion(features)

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first block first: the units of activation checkpointing."""
        return []
