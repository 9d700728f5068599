"""Swin: a hierarchical transformer with shifted windows that replaces hidden patches or drops them."""

from collections.abc import Mapping
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from mim.encoders.base import InferredConfig, square_side
from mim.encoders.windowed import BIAS_TABLE, Windowed
from mim.ops.positions import resize_bias_table
from mim.structures import ImageSpec


class Swin(Windowed, name="swin"):
    """timm's SwinTransformer, which replaces hidden patches or leaves them out.

    INIT.checkpoint resizes the tables of relative-position biases of another window.
    Source: SimMIM, models/simmim.py, SwinTransformerForSimMIM.
    """

    def __init__(self, image: ImageSpec, **shared: Any):
        super().__init__(image, SwinTransformer, **shared)

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        """The window is that of the largest table, where it is square: a stage of few tokens has a smaller window."""
        config = super().infer_config(state)
        tables = [len(table) for name, table in state.items() if name.endswith(BIAS_TABLE)]
        distances = square_side(max(tables))  # 2 window - 1
        if distances % 2 == 0:
            return config
        return InferredConfig({**config.keys, "window": (distances + 1) // 2}, config.channels)

    @staticmethod
    def heads_of(state: Mapping[str, Tensor], attention: str) -> int:
        return state[f"{attention}.{BIAS_TABLE}"].shape[1]

    def resize_weight(self, name: str, weight: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        if not name.endswith(BIAS_TABLE) or weight.ndim != 2:
            return weight
        attention = self.get_submodule(name.rpartition(".")[0])
        grid = None
        if image_size is not None:
            stage = int(name.split(".")[2])  # backbone.layers.<stage>.blocks...
            grid = tuple(side // self.spec.stages[stage].stride for side in image_size)
        return resize_bias_table(weight, attention.window_size, grid)  # type: ignore[arg-type]
