"""Dropping in the image encoders of language models: Qwen 3, DeepSeek and Gemma 4, with or without a classifier.

Shapes: B batch, C channels, H W pixels, M kept patch tokens, N patch tokens, D width, R channels of rotary positions.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from mim.encoders.hiding.base import keep_tokens
from mim.encoders.hiding.drop_at_blocks import DropAtBlocks
from mim.encoders.hiding.drop_naflex import keep_rotary
from mim.encoders.hiding.families import classes
from mim.encoders.hiding.layout import Layout

CLASSIFIERS = (
    *classes("deepseek_vit", "DeepseekVitClassifier"),
    *classes("gemma4_vit", "Gemma4VitClassifier"),
    *classes("qwen3_vit", "Qwen3VitClassifier"),
)


class DropLanguage(DropAtBlocks):
    """Drops hidden tokens of Qwen 3's and DeepSeek's image encoders, with their rotary positions.

    timm puts their last tokens back on the whole grid, so here their layers are called one by one.
    """

    families: ClassVar[tuple[type[nn.Module], ...]] = (
        *classes("qwen3_vit", "Qwen3VitEncoder", "Qwen3VitClassifier"),
        *classes("deepseek_vit", "DeepseekVitEncoder", "DeepseekVitClassifier"),
    )

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return super().objection(backbone) or merging(backbone)

    @staticmethod
    def trunk(backbone: Any) -> Any:
        return backbone.encoder if isinstance(backbone, CLASSIFIERS) else backbone

    def tokens(self, backbone: Any, img_BCHW: Tensor) -> Tensor:
        assert self._kept_BM is not None, "set while a mask is at work"
        trunk = self.trunk(backbone)
        tokens_BND, rotary_NR = trunk._pos_embed(trunk.patch_embed(img_BCHW))
        rotary_B1MR = keep_rotary(rotary_NR, self._kept_BM)
        for block in trunk.blocks:  # a hook on the first one drops
            tokens_BND = block(tokens_BND, rope=rotary_B1MR)
        last_BMD: Tensor = trunk.norm(tokens_BND) if hasattr(trunk, "norm") else tokens_BND
        return last_BMD


class DropGemma(DropLanguage):
    """Drops hidden tokens of Gemma 4's image encoder, which passes the cosines and sines of positions to each block."""

    families = classes("gemma4_vit", "Gemma4VitEncoder", "Gemma4VitClassifier")

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        for block in self.trunk(backbone).blocks:
            block.register_forward_pre_hook(self._keep_positions)

    def tokens(self, backbone: Any, img_BCHW: Tensor) -> Tensor:
        return DropAtBlocks.tokens(self, backbone, img_BCHW)

    def _keep_positions(self, block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook: the arguments of a block, with the positions of kept tokens alone while a mask is at work."""
        if self._kept_BM is None:
            return args
        tokens_BMD, *waves = args
        return (tokens_BMD, *(keep_tokens(wave_BNR, self._kept_BM, 0) for wave_BNR in waves))


def merging(backbone: nn.Module) -> str:
    """Why the last layer of a classifier around an image encoder needs the whole grid; empty where it does not."""
    pool = getattr(backbone, "encoder_pool", "")
    return f"its encoder_pool {pool} merges neighbouring tokens of the whole grid" if pool not in ("", "none") else ""
