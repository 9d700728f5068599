"""Classifier: how an image becomes class scores, from an encoder that is trained, partly frozen, or wholly so.

Shapes: B batch, C channels, H W pixels, D width, K classes, L linear layers.
"""

import copy
from typing import Literal, Self

import torch
from torch import Tensor, nn

from mim.encoders import Encoder
from mim.readouts.settings import FinetuneHeadSettings, FreezeSettings, ProbeHeadSettings
from mim.structures import Pool


class Classifier(nn.Module):
    """Encoder, pooling, norm and linear layers: one in fine-tuning, several in a probe of several learning rates.

    Args:
        norm: on the pooled features.
        layers: how many linear layers stand side by side.
        tune_blocks: see FreezeSettings. What is frozen stays in eval mode.

    Raises ValueError where the encoder hides something, has no class token to pool, or not so many blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        norm: nn.Module,
        classes: int,
        pool: Pool,
        init_std: float,
        layers: int = 1,
        tune_blocks: float | Literal["all"] = "all",
    ):
        super().__init__()
        if encoder.hidden != "none":
            raise ValueError(
                f"ENCODER.hidden is {encoder.hidden}: a classifier sees whole images, so it must be none (a mask "
                "token in INIT.checkpoint is then left out)"
            )
        if pool != "mean" and not encoder.spec.num_prefix:
            raise ValueError(f"CLASSIFIER.pool is {pool}: ENCODER.name {encoder.name} has no class token; use mean")
        self.encoder, self.norm, self.pool = encoder, norm, pool
        width = encoder.spec.width * (2 if pool == "both" else 1)
        head = nn.Linear(width, classes)
        nn.init.zeros_(head.weight)
        if init_std:
            nn.init.trunc_normal_(head.weight, std=init_std)
        nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(layers))  # so that only their rates differ
        self._resting = [] if tune_blocks == "all" else freeze(encoder, tune_blocks)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """Class scores of normalised images, (L, B, K)."""
        features_BD = self.norm(self.encoder(img_BCHW).pooled(self.pool))
        return torch.stack([head(features_BD) for head in self.heads])

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    def blocks(self) -> list[nn.Module]:
        """The encoder's repeated blocks: the units of activation checkpointing."""
        return self.encoder.blocks()


def finetune_classifier(
    encoder: Encoder, classes: int, head: FinetuneHeadSettings, frozen: FreezeSettings
) -> Classifier:
    """The classifier of fine-tuning."""
    norm = nn.LayerNorm(encoder.spec.width, eps=1e-6) if head.norm else nn.Identity()
    return Classifier(encoder, norm, classes, head.pool, head.init_std, tune_blocks=frozen.tune_blocks)


def probe_classifier(encoder: Encoder, classes: int, head: ProbeHeadSettings) -> Classifier:
    """The classifier of a linear probe: a frozen encoder, and a BatchNorm without weights before the linear layers."""
    width = encoder.spec.width * (2 if head.pool == "both" else 1)
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
    return Classifier(encoder, norm, classes, head.pool, head.init_std, len(head.rates), tune_blocks=0)


def freeze(encoder: Encoder, tune_blocks: float) -> list[nn.Module]:
    """Freezes all but the last blocks and what stands on them; gives the modules of which nothing is trained.

    What was fixed before, such as a table of sine-cosine positions, stays so.

    Raises ValueError, naming the key, where the encoder has not so many blocks, or its blocks have no halves.
    """
    blocks, layers = encoder.blocks(), encoder.layer_parameters()
    if tune_blocks > len(blocks):
        raise ValueError(
            f"FREEZE.tune_blocks is {tune_blocks:g}, and ENCODER.name {encoder.name} has {len(blocks)} blocks: "
            "use fewer, or all"
        )
    whole = len(blocks) - int(tune_blocks)  # the first block that is trained whole
    trained = {id(p) for layer in layers[whole + 1 :] for p in layer}
    if tune_blocks:
        trained |= {id(p) for p in encoder.above_blocks()}
    if tune_blocks % 1:
        half = encoder.upper_half(blocks[whole - 1])
        if not half:
            raise ValueError(
                f"FREEZE.tune_blocks is {tune_blocks:g}: the blocks of ENCODER.name {encoder.name} have no halves: "
                "use a whole number"
            )
        below = {id(p) for p in blocks[whole - 1].parameters()}
        trained |= {id(p) for p in layers[whole] if id(p) not in below}  # what stands on that block
        trained |= {id(p) for part in half for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)
    return [module for module in encoder.modules() if _rests(module)]


def _rests(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them is trained."""
    required = [parameter.requires_grad for parameter in module.parameters()]
    return bool(required) and not any(required)
