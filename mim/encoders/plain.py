"""Plain: what ViT and Beit share, timm's transformer blocks of one width, with masking around them.

Shapes: B batch, N tokens, h w tokens high and wide, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from einops import rearrange
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim.encoders.base import Encoder, Hidden, InferredConfig, StagePart, timm_arguments
from mim.encoders.hiding.base import map_of_kept
from mim.io.checks import above_zero, at_least
from mim.io.weights import depth_of
from mim.structures import ImageSpec, StageSpec


class Plain(Encoder):
    """A transformer of timm's whose tokens all have one width, under timm's parameter names in `backbone`.

    Args:
        backbone: builds the transformer from the arguments of timm's VisionTransformer.
        num_prefix: class token and registers ahead of the patch tokens.
        wide_heads: whether the heads have a width of their own, so that they need not divide the width.
        patch: side of a patch in pixels.
        width: channels of a token.
        depth: number of transformer blocks.
        heads: attention heads of a block; they must divide the width.
        mlp_ratio: hidden channels of a block's MLP, as a multiple of the width.
        norm: whether a LayerNorm follows the last block. Fine-tuning on the mean of the tokens needs false: its
            classifier has a norm of its own behind the mean.
        norm_eps: eps of every LayerNorm, above 0. MAE and SimMIM: 1e-6; vit-pytorch and IcarusWizard/MAE have
            PyTorch's default, 1e-5.
        drop_path: stochastic depth rate of the last block, in [0, 1); the rate rises linearly from 0.
    """

    stage_parts = ("block", "mlp")
    free_keys: ClassVar[tuple[str, ...]] = (*Encoder.free_keys, "norm")
    stem_weight = "backbone.patch_embed.proj.weight"
    backbone: VisionTransformer | Beit

    def __init__(
        self,
        image: ImageSpec,
        backbone: Callable[..., VisionTransformer | Beit],
        num_prefix: int,
        wide_heads: bool = False,
        *,
        hidden: Hidden = "replace",
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        norm: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ):
        at_least("ENCODER", 1, width=width, depth=depth, heads=heads)
        shared = timm_arguments(image, patch, width, mlp_ratio, drop_path)
        stages = (StageSpec(width, patch),) * depth
        super().__init__(image, hidden, width=width, patch=patch, num_prefix=num_prefix, stages=stages)
        above_zero("ENCODER", norm_eps=norm_eps)
        if width % heads and not wide_heads:
            raise ValueError(f"ENCODER.heads {heads} does not divide ENCODER.width {width}")
        self.norm_layer = partial(nn.LayerNorm, eps=norm_eps)
        self.backbone = backbone(**shared, depth=depth, num_heads=heads, norm_layer=self.norm_layer)
        if not norm:
            self.backbone.norm = nn.Identity()

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> InferredConfig:
        width, channels, _, patch = state["backbone.patch_embed.proj.weight"].shape
        keys = {
            "patch": patch,
            "width": width,
            "depth": depth_of(state, "backbone.blocks."),
            "mlp_ratio": len(state["backbone.blocks.0.mlp.fc1.weight"]) / width,
            "norm": "backbone.norm.weight" in state,
        }
        return InferredConfig(keys, channels)

    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.blocks)

    def layer_parameters(self) -> list[list[nn.Parameter]]:
        """The shared bias table of a Beit is in no layer, because every block reads it: it belongs to the top layer."""
        backbone = self.backbone
        tokens = [token for token in (self.mask_token, backbone.cls_token, backbone.pos_embed) if token is not None]
        return [[*tokens, *backbone.patch_embed.parameters()], *(list(block.parameters()) for block in self.blocks())]

    def upper_half(self, block: nn.Module) -> list[nn.Module | nn.Parameter]:
        return [block.norm2, block.mlp]  # type: ignore[list-item]

    def run_blocks(
        self,
        tokens_BND: Tensor,
        stages: Sequence[int],
        kept_BN: Tensor | None = None,
        of: StagePart = "block",
        **shared: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The tokens after the last norm, and the maps (B, D, h, w) of the blocks of these numbers.

        Args:
            tokens_BND: prefix tokens and all patch tokens, or the kept ones.
            kept_BN: indices of the kept ones in the grid; elsewhere maps are 0.
            of: whose output the maps are.
            shared: further arguments of each block.
        """
        maps: dict[int, Tensor] = {}
        for number, block in enumerate(self.backbone.blocks):
            if number in stages and of == "mlp":
                tokens_BND, stage_BND = _with_output(block, block.mlp, tokens_BND, **shared)  # type: ignore[arg-type]
            else:
                tokens_BND = stage_BND = block(tokens_BND, **shared)
            if number in stages:
                patches_BND = stage_BND[:, self.spec.num_prefix :]
                if kept_BN is None:
                    maps[number] = rearrange(patches_BND, "b (h w) d -> b d h w", h=self.spec.grid[0])
                else:
                    maps[number] = map_of_kept(patches_BND, kept_BN, self.spec.grid)
        return self.backbone.norm(tokens_BND), tuple(maps[stage] for stage in stages)


def _with_output(block: nn.Module, part: nn.Module, tokens_BND: Tensor, **shared: Any) -> tuple[Tensor, Tensor]:
    """The output of a block, and that of one of its parts."""
    outputs: list[Tensor] = []
    handle = part.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        return block(tokens_BND, **shared), outputs[0]
    finally:
        handle.remove()
