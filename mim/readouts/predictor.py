"""Predictor: an encoder with readouts, to be trained, partly frozen or frozen.

Shapes: B batch, C channels, H W pixels, K outputs, h w entries of a map.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from torch import Tensor, nn

from mim.criteria import Criterion
from mim.encoders import Encoder
from mim.readouts.base import Readout
from mim.readouts.freeze import freeze
from mim.structures import Features


class Predictor(nn.Module):
    """An encoder, readouts on its features of whole images, and the criterion that compares their scores with labels.

    Args:
        encoder: must have `hidden` none.
        readouts: one in fine-tuning, one for each setting of a probe; all see the same features.
        criterion: is not called here; what it knows of the training labels is saved with the weights.
        tune_blocks: number of the encoder's last blocks that are trained, or `all`; frozen modules stay in eval mode.

    Raises ValueError where the encoder hides patches, or has too few blocks.
    """

    readouts: Sequence[Readout]

    def __init__(
        self,
        encoder: Encoder,
        readouts: Sequence[Readout],
        criterion: Criterion,
        tune_blocks: float | Literal["all"] = "all",
    ):
        super().__init__()
        if encoder.hidden != "none":
            raise ValueError(
                f"ENCODER.hidden is {encoder.hidden}: a readout sees whole images, so it must be none (a mask "
                "token in INIT.checkpoint is then left out)"
            )
        self.encoder, self.criterion = encoder, criterion
        self.readouts = nn.ModuleList(readouts)  # type: ignore[assignment]
        self.stages = tuple(sorted({stage for readout in readouts for stage in readout.stages}))
        self._frozen = [] if tune_blocks == "all" else freeze(encoder, tune_blocks)

    def forward(self, images: Tensor | Features) -> tuple[Tensor, ...]:
        """The scores of each readout, (B, K) or (B, K, h, w), for normalised images (B, C, H, W) or their features."""
        return self.read(images if isinstance(images, Features) else self.features(images))

    def features(self, img_BCHW: Tensor) -> Features:
        """What the encoder makes of normalised images, with the maps of all stages that a readout needs."""
        stages = (self.stages,) if self.stages else ()  # not every encoder has such an argument
        return self.encoder(img_BCHW, None, *stages)

    def needed(self, features: Features) -> Features:
        """The features without what no readout reads: where all pool, one token is left, the mean of the patches'."""
        if any(readout.reads is None for readout in self.readouts):
            return features
        return replace(features, tokens_BND=features.tokens_BND.mean(dim=1, keepdim=True))

    def read(self, features: Features) -> tuple[Tensor, ...]:
        """The scores of each readout."""
        maps = dict(zip(self.stages, features.stages_BDhw, strict=True))
        return tuple(
            readout(replace(features, stages_BDhw=tuple(maps[stage] for stage in readout.stages)))
            for readout in self.readouts
        )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def is_frozen(self, name: str) -> bool:
        """Whether no training changes an encoder weight of that name, or would mend its absence, by FREEZE or a probe.

        name: in the encoder, or of a weight that it lacks, which would stand in the module of that name.
        """
        if not self._frozen:
            return False
        parameters = dict(self.encoder.named_parameters())
        if name in parameters:
            return not parameters[name].requires_grad
        modules = dict(self.encoder.named_modules())
        while name and not (name in modules and any(True for _ in modules[name].parameters())):
            name = name.rpartition(".")[0]
        return not all(parameter.requires_grad for parameter in modules[name].parameters())

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of the encoder: the units of activation checkpointing."""
        return self.encoder.blocks()
