"""Dropping in transformers with rotary positions that come to each block as an argument.

Shapes: B batch, H heads, M kept patch tokens, N patch tokens, K prefix tokens, D width, R channels of rotary positions.
"""

from typing import Any

import torch
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from torch import Tensor, nn

from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, keep_tokens
from mim.encoders.hiding.layout import Layout

CLASSIFIERS = (DeepseekVitClassifier, Gemma4VitClassifier, Qwen3VitClassifier)


class DropRotary(DropAtBlocks):
    """Drops hidden tokens of NaFlexVit, with rotary positions of all blocks or of each block, or with none.

    timm's own place where patches leave works in training alone, at random. Here patches have their positions on the
    whole grid before they leave, so the grid is never read from the coordinates of those that stay.
    """

    families = (NaFlexVit,)

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        if isinstance(backbone, NaFlexVit):
            backbone.patch_drop = None
        for block in self.trunk(backbone).blocks:
            block.register_forward_pre_hook(self._keep_positions, with_kwargs=True)

    def _keep_positions(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """A hook: the arguments of a block, with the positions of kept tokens alone while a mask is at work."""
        rotary = kwargs.get("rope")
        if self._kept_BM is None or rotary is None:
            return args, kwargs
        return args, {**kwargs, "rope": keep_rotary(rotary, self._kept_BM)}


class DropLanguageRotary(DropRotary):
    """Drops hidden tokens of the image encoders of language models, Qwen3 and DeepSeek, with or without a classifier.

    Their last tokens are put on the whole grid at once, so here their layers are called one by one.
    """

    families = (Qwen3VitEncoder, Qwen3VitClassifier, DeepseekVitEncoder, DeepseekVitClassifier)

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return super().objection(backbone) or merging(backbone)

    @staticmethod
    def trunk(backbone: Any) -> Any:
        return backbone.encoder if isinstance(backbone, CLASSIFIERS) else backbone

    def tokens(self, backbone: Any, img_BCHW: Tensor) -> Tensor:
        trunk = self.trunk(backbone)
        tokens_BND, rotary = trunk._pos_embed(trunk.patch_embed(img_BCHW))
        for block in trunk.blocks:
            tokens_BND = block(tokens_BND, rope=rotary)
        return trunk.norm(tokens_BND) if hasattr(trunk, "norm") else tokens_BND  # type: ignore[no-any-return]


class DropWavePairs(DropAtBlocks):
    """Drops hidden tokens of Gemma 4's image encoder, which passes the cosines and sines of positions to each block."""

    families = (Gemma4VitEncoder, Gemma4VitClassifier)

    def __init__(self, backbone: Any, layout: Layout):
        super().__init__(backbone, layout)
        for block in self.trunk(backbone).blocks:
            block.register_forward_pre_hook(self._keep_positions)

    @classmethod
    def objection(cls, backbone: nn.Module) -> str:
        return super().objection(backbone) or merging(backbone)

    @staticmethod
    def trunk(backbone: Any) -> Any:
        return backbone.encoder if isinstance(backbone, CLASSIFIERS) else backbone

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


def keep_rotary(rotary: Tensor, kept_BM: Tensor) -> Tensor:
    """Rotary positions, (N, R) or (H, N, R), of kept tokens: (B, 1, M, R) or (B, H, M, R)."""
    rotary_HNR = rotary if rotary.ndim == 3 else rotary[None]
    return torch.movedim(rotary_HNR[:, kept_BM], 1, 0)
