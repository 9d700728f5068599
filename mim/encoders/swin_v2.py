"""Swin V2: Swin with cosine attention, norms behind its layers and biases from a network of the distance."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from torch import Tensor

from mim.encoders.base import InferredConfig
from mim.encoders.windowed import Windowed
from mim.structures import ImageSpec


class SwinV2(Windowed, name="swin_v2"):
    """timm's SwinTransformerV2, with masking composed around it; its other keys are those of Windowed.

    The norm at the end of each branch starts at zero, as published: in the first step of a training from scratch no
    token sees those around it, and what is inside a branch has no gradient.

    Args:
        pretrained_windows: for fine-tuning at another window, one number a stage: the side, in tokens, of the window
            that the weights were trained at, which is the unit of the distances; 0, or no numbers: the stage's own.

    Source: Swin-Transformer, models/simmim.py, SwinTransformerV2ForSimMIM; models/swin_transformer_v2.py. Differs from:
    a window may be one token high or wide (0 / 0 there).
    """

    def __init__(self, image: ImageSpec, *, pretrained_windows: tuple[int, ...] = (), **shared: Any):
        super().__init__(image, partial(_backbone, pretrained_windows), **shared)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        told = super().infer_config(state)
        return replace(told, unspecified=(*told.unspecified, "pretrained_windows"))

    @staticmethod
    def heads_of(state: Mapping[str, Tensor], attention: str) -> int:
        return len(state[f"{attention}.logit_scale"])


def _backbone(pretrained_windows: tuple[int, ...], **keys: Any) -> SwinTransformerV2:
    stages = len(keys["depths"])
    if len(pretrained_windows) not in (0, stages) or any(side < 0 or side == 1 for side in pretrained_windows):
        raise ValueError(
            f"ENCODER.pretrained_windows is {list(pretrained_windows)}: one number for each of {stages} stages, "
            "0 or at least 2, or none at all"
        )
    backbone = SwinTransformerV2(pretrained_window_sizes=pretrained_windows or (0,) * stages, **keys)
    for module in backbone.modules():
        if isinstance(module, WindowAttention):  # older timm divides 0 by 0 where a window is one token high or wide
            module.relative_coords_table.nan_to_num_(0.0)  # type: ignore[operator]
    return backbone
