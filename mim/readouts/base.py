"""Readout: the family of parts that turn an encoder's features of a whole image into scores.

Shapes: B batch, K outputs, h w entries high and wide.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mim.registry import Component
from mim.structures import EncoderSpec, Features, LabelKind, LabelSpec, Pool


class Readout(Component, nn.Module, ABC, section="READOUT"):
    """From features to scores, which a criterion compares with labels.

    To write one, subclass with `name="..."`, call `super().__init__` with the arguments below and implement `forward`.
    Keyword-only arguments of a subclass are its keys. The class attribute `kinds` says which labels it can answer. One
    whose queries attend to patches is an AttendingReadout, whose attention mim-evaluate dense draws.

    Args:
        encoder: what comes in.
        outputs: numbers that come out, of an image or of each entry of a map.
        stages: positions in `encoder.stages` of the maps that `forward` finds in `features.stages_BDhw`, in this order;
            none where the tokens are enough.

    Raises ValueError where the encoder has no such stage.
    """

    kinds: ClassVar[tuple[LabelKind, ...]] = ("class", "classes", "number")
    reads: Pool | None = None  # where `forward` reads nothing of the features but `features.pooled(reads)`

    def __init__(self, encoder: EncoderSpec, outputs: int, stages: tuple[int, ...] = ()):
        super().__init__()
        self.encoder, self.outputs, self.stages = encoder, outputs, stages
        if stages and not 0 <= min(stages) <= max(stages) < len(encoder.stages):
            raise ValueError(
                f"READOUT.name {self.name} needs stages {list(stages)}, and the encoder has {len(encoder.stages)}: "
                "use stages from 0 on, or another readout"
            )

    @classmethod
    def check(cls, labels: LabelSpec) -> None:
        """Raises ValueError for labels that this readout cannot answer."""
        if labels.kind not in cls.kinds:
            fitting = [name for name, part in sorted(cls.members().items()) if labels.kind in part.kinds]
            raise ValueError(
                f"READOUT.name {cls.name} answers labels of kind {' or '.join(cls.kinds)}, and these are of kind "
                f"{labels.kind}: use READOUT.name {' or '.join(fitting)}"
            )

    @property
    def title(self) -> str:
        """What reports call it, with the keys that matter most."""
        return self.name

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Scores (B, K) of images; for masks (B, K, h, w), of a map of any size."""


class AttendingReadout(Readout):
    """A readout with queries that attend to patches. Shapes: Q queries, H attention heads, N patches."""

    @abstractmethod
    def attention(self, features: Features) -> Tensor:
        """The attention (B, Q, H, N): the shares of the patches, row by row, in what a head of a query gathers."""
