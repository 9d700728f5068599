"""Swin V2: Swin with cosine attention, a norm at the end of each branch, and biases that a small MLP computes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from torch import Tensor

from mim.encoders.base import InferredConfig
from mim.encoders.windowed import Windowed
from mim.structures import ImageSpec


class SwinV2(Windowed, name="swin_v2"):
    """timm's SwinTransformerV2, which replaces hidden patches or leaves them out.

    The norm at the end of each branch starts at zero, as published. So in the first step of a training from scratch no
    token attends to another, and the weights inside a branch have no gradient.
    Source: Swin-Transformer, models/simmim.py, SwinTransformerV2ForSimMIM; models/swin_transformer_v2.py. Differs from:
    a window may be one token high or wide (0 / 0 there).

    Args:
        pretrained_windows: for fine-tuning at another window: for each stage the side, in tokens, of the window of
            pretraining, which is the unit of distances. 0, or an empty list, means the stage's own window. Where it is
            not set, weights of a checkpoint at another window or image size have the windows of that checkpoint.
    """

    resizable_keys = (*Windowed.resizable_keys, "pretrained_windows")

    def __init__(self, image: ImageSpec, *, pretrained_windows: tuple[int, ...] = (), **shared: Any):
        super().__init__(image, partial(_backbone, pretrained_windows), **shared)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        config = super().infer_config(state)
        return replace(config, unspecified=(*config.unspecified, "pretrained_windows"))

    @staticmethod
    def keys_at_another_size(keys: Mapping[str, Any], image_size: Sequence[int]) -> dict[str, Any]:
        """What weights of a model with these keys need at another window or image size: the windows of its stages.

        Of a stage with a window that is not square, the unit cannot be kept, and it stays 0.
        """
        windows, stated = [], tuple(keys["pretrained_windows"]) or (0,) * len(keys["depths"])
        for stage, side in enumerate(stated):
            sides = {min(keys["window"], size // keys["patch"] // 2**stage) for size in image_size}
            own = sides.pop() if len(sides) == 1 and 1 not in sides else 0
            windows.append(side or own)
        return {"pretrained_windows": tuple(windows)}

    @staticmethod
    def heads_of(state: Mapping[str, Tensor], attention: str) -> int:
        return len(state[f"{attention}.logit_scale"])


def _backbone(pretrained_windows: tuple[int, ...], **keys: Any) -> SwinTransformerV2:
    stages = len(keys["depths"])
    if len(pretrained_windows) not in (0, stages) or any(side < 0 or side == 1 for side in pretrained_windows):
        raise ValueError(
            f"ENCODER.pretrained_windows is {list(pretrained_windows)}: one number for each of {stages} stages, "
            "0 or at least 2, or an empty list"
        )
    backbone = SwinTransformerV2(pretrained_window_sizes=pretrained_windows or (0,) * stages, **keys)
    for module in backbone.modules():
        if isinstance(module, WindowAttention):  # older timm computes 0 / 0 where a window is one token high or wide
            module.relative_coords_table.nan_to_num_(0.0)  # type: ignore[operator]
    return backbone
