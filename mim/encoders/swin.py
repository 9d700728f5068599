"""Swin: a hierarchical transformer with shifted windows that replaces hidden patches (SimMIM).

Shapes: L relative positions, H heads.
"""

from collections.abc import Mapping
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from mim.encoders.base import InferredConfig, square
from mim.encoders.windowed import Windowed
from mim.ops.positions import resize_bias_table
from mim.structures import ImageSpec

TABLE = "relative_position_bias_table"


class Swin(Windowed, name="swin"):
    """timm's SwinTransformer, with masking composed around it; its keys are those of Windowed.

    A table of relative-position biases belongs to a window: INIT.checkpoint resizes those of another one.
    Source: SimMIM, models/simmim.py, SwinTransformerForSimMIM.
    """

    def __init__(self, image: ImageSpec, **shared: Any):
        super().__init__(image, SwinTransformer, **shared)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """With the window, where it is square: of the largest table, for a stage of few tokens cuts it short."""
        told = super().infer_config(state)
        tables = [len(table) for name, table in state.items() if name.endswith(TABLE)]
        distances = square(max(tables))  # 2 window - 1; there is one: the number of heads was read from it
        return InferredConfig({**told.keys, "window": (distances + 1) // 2}, told.channels) if distances % 2 else told

    @staticmethod
    def heads_of(state: Mapping[str, Tensor], attention: str) -> int:
        return state[f"{attention}.{TABLE}"].shape[1]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if not name.endswith(TABLE) or weight.ndim != 2:
            return weight
        attention = self.get_submodule(name.rpartition(".")[0])
        source = None
        if image_size is not None:
            stage = int(name.split(".")[2])  # backbone.layers.<stage>.blocks...
            source = tuple(side // (self.spec.patch * 2**stage) for side in image_size)
        return resize_bias_table(weight, attention.window_size, source)  # type: ignore[arg-type]
