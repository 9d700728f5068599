"""EncoderMaps: the maps that a readout reads from an encoder, chosen by number or four by default.

Shapes: B batch, D width, h w entries high and wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from einops import rearrange
from torch import Tensor

from mim.structures import EncoderSpec, Features, StageSpec

LEVELS = 4  # of a pyramid


@dataclass(frozen=True, slots=True)
class EncoderMaps:
    """Maps of stages and the output of an encoder, the finest first.

    The encoder's output, which are its last tokens behind its last norm, stands in the place of its last stage. An
    encoder without stages has an output all the same.

    Args:
        encoder: what they come from.
        stages: positions in `encoder.stages` of the maps ahead of the output, in rising order.
        with_output: whether the encoder's output is the last map.
    """

    encoder: EncoderSpec
    stages: tuple[int, ...]
    with_output: bool

    @classmethod
    def named(cls, encoder: EncoderSpec, stages: Sequence[int]) -> Self:
        """The maps that READOUT.stages names, from 0 or from the end with -1 for the output; `[]` is the output alone.

        Raises ValueError for a stage that does not exist or is named twice.
        """
        count = max(1, len(encoder.stages))
        for stage in stages:
            if not -count <= stage < count:
                strides = ", ".join(str(each.stride) for each in encoder.stages) or str(encoder.stride)
                raise ValueError(
                    f"READOUT.stages {list(stages)}: this encoder has no stage {stage}; it has 0 to {count - 1} (of "
                    f"strides {strides}), or -{count} to -1. The last one is its output"
                )
        numbers = sorted(stage % count for stage in stages)
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"READOUT.stages {list(stages)} names a stage twice")
        earlier = tuple(number for number in numbers if number < count - 1)
        return cls(encoder, earlier, not numbers or numbers[-1] == count - 1)

    @classmethod
    def four(cls, encoder: EncoderSpec) -> Self:
        """Up to four maps, the last of them the output: one of each stride, or evenly spaced ones of one stride.

        Source: DINOv3, eval/segmentation/models (blocks 2, 5, 8, 11 of 12); BEiT's and MAE's UPerNet take 3, 5, 7, 11.
        """
        last = {stage.stride: number for number, stage in enumerate(encoder.stages)}
        numbers = list(last.values())[-LEVELS:]
        if len(last) == 1:
            count = len(encoder.stages)
            numbers = sorted({-(-level * count // LEVELS) - 1 for level in range(1, LEVELS + 1)})
        return cls(encoder, tuple(numbers[:-1]), True)

    @property
    def specs(self) -> list[StageSpec]:
        """Width and stride of each map."""
        output = [StageSpec(self.encoder.width, self.encoder.stride)] if self.with_output else []
        return [*(self.encoder.stages[stage] for stage in self.stages), *output]

    def read(self, features: Features) -> list[Tensor]:
        """The maps (B, D, h, w), from features that have those of `stages`."""
        maps = list(features.stages_BDhw)
        if self.with_output:
            maps.append(rearrange(features.tokens_BND, "b (h w) d -> b d h w", h=features.grid[0]))
        return maps
