"""Replacing: a learned token stands in the place of what is hidden.

Shapes: B batch, C channels, H W pixels, h w entries high and wide, N tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.mvitv2 import MultiScaleVit
from torch import Tensor, nn

from mim.encoders.hiding.base import Way, whole, without_hidden_pixels
from mim.encoders.hiding.layout import Layout
from mim.encoders.hiding.stem import stem_of
from mim.structures import Features, PatchMask

AUTOMATIC_STAGE = 3
FIRST_STAGE_STRIDE = 4  # pixels; what is finer belongs to the stem
# Classes of timm that pass several maps on between stages, or name no module of a stage; by name, as some are new
WITHOUT_STAGES = ("CoaT", "EfficientViM", "Gemma4VitClassifier", "HighResolutionNet", "TNT")


class Replace(Way):
    """Puts the mask token behind a stem whose patches do not overlap, or else behind a stage.

    Where patches overlap, or the token stands behind a stage, hidden pixels have a learned colour before the stem, so
    that no layer sees them. With patches that overlap, a backbone that has fewer than four stages, or several maps
    between stages (HRNet), has the colour alone.

    Source: SimMIM, models/simmim.py (behind the norm of the patch embedding); A2MIM (arXiv:2205.13943), which fills
    hidden pixels and puts the token behind stage 3. Differs from A2MIM: its colour is the mean of the images.

    Args:
        replace_at: number of the stage behind which the token stands, counted from 1 over the strides of at least 4
            pixels; 0 is behind the stem where its patches do not overlap, and behind stage 3 where they do.

    Raises ValueError where the backbone has no such stage, and where it drops tokens at random in training.
    """

    hiding = "replace"
    colour: nn.Parameter | None

    def __init__(self, backbone: nn.Module, layout: Layout, replace_at: int = 0):
        super().__init__(backbone, layout)
        if getattr(getattr(backbone, "patch_drop", None), "prob", 0):
            raise ValueError("ENCODER.options patch_drop_rate drops tokens, and ENCODER.hidden replace needs them all")
        stem, stages = stem_of(backbone), _stages(backbone)
        if not 0 <= replace_at <= len(stages):
            numbers = f"has the stages 1 to {len(stages)}" if stages else "has no stage for a token, so use 0"
            raise ValueError(f"ENCODER.replace_at is {replace_at}: this backbone {numbers}")
        module: Any = stem.module
        self.cell, self.token_width = stem.patch, stem.width
        if module is None and not replace_at and len(stages) > AUTOMATIC_STAGE:
            replace_at = AUTOMATIC_STAGE
        if replace_at:
            name, self.token_width, self.cell = stages[replace_at - 1]
            module = backbone.get_submodule(name)
        self.cell = self.cell or layout.stages[0].stride
        self.colour = None
        if module is None or replace_at:
            self.colour = nn.Parameter(torch.zeros(int(backbone.in_chans), 1, 1))  # type: ignore[arg-type]
        if module is not None:
            module.register_forward_hook(self._replace)
            module.reads = (self, "_hiding")
        self._hiding: tuple[PatchMask, Tensor] | None = None

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return ""

    def forward(
        self, backbone: Any, img_BCHW: Tensor, mask: PatchMask, token_11D: Tensor | None, stages: Sequence[int]
    ) -> Features:
        colour = 0.0 if self.colour is None else self.colour
        self._hiding = None if token_11D is None else (mask, token_11D)
        try:
            return whole(backbone, self.layout, without_hidden_pixels(img_BCHW, mask, colour), stages)
        finally:
            self._hiding = None

    def _replace(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The output of the stem or of a stage, in any of timm's layouts, with the token where it is hidden."""
        if self._hiding is None:
            return output
        mask, token_11D = self._hiding
        if isinstance(output, (tuple, list)):  # such as tokens and their grid
            return type(output)((self._replace(module, inputs, output[0]), *output[1:]))
        high, wide = (side * self.layout.stride // self.cell for side in self.layout.grid)
        hidden_Bhw = mask.at(high, wide)
        token_D = token_11D[0, 0].to(output.dtype)
        if output.ndim == 3:
            hidden_BN1 = rearrange(hidden_Bhw, "b h w -> b (h w) 1")
            hidden_BN1 = F.pad(hidden_BN1, (0, 0, output.shape[1] - high * wide, 0))  # a class token ahead is seen
            return torch.where(hidden_BN1, token_D, output)
        if output.shape[1] == len(token_D) and output.shape[2:] == hidden_Bhw.shape[1:]:
            return torch.where(rearrange(hidden_Bhw, "b h w -> b 1 h w"), token_D[:, None, None], output)
        return torch.where(rearrange(hidden_Bhw, "b h w -> b h w 1"), token_D, output)


def _stages(backbone: Any) -> list[tuple[str, int, int]]:
    """Name, channels and stride of the last module of each stage that returns one map, from timm's feature_info."""
    if type(backbone).__name__ in WITHOUT_STAGES:
        return []
    last = {info["reduction"]: info for info in backbone.feature_info if info["reduction"] >= FIRST_STAGE_STRIDE}
    stages = [(info["module"], info["num_chs"], stride) for stride, info in sorted(last.items())]
    if isinstance(backbone, MultiScaleVit):  # whose modules have other names than feature_info says
        stages = [(name.replace("block", "stages"), width, stride) for name, width, stride in stages]
    return stages
