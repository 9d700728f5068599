"""Classifier: class scores of an image, from an encoder that is trained, partly frozen or frozen.

Shapes: B batch, C channels, H W pixels, D width, K classes, L linear layers.
"""

import copy
from typing import Literal, Self

import torch
from torch import Tensor, nn

from mim.encoders import Encoder
from mim.ops.truncated_normal import trunc_normal_
from mim.readouts.settings import FinetuneHeadSettings, FreezeSettings, ProbeHeadSettings
from mim.structures import Pool


class Classifier(nn.Module):
    """Encoder, pooling, norm and linear layers: one in fine-tuning, one for each learning rate in a linear probe.

    Args:
        encoder: must have `hidden` none.
        norm: the layer between pooling and the linear layers.
        classes: number of classes.
        pool: how tokens become one vector an image, see Features.pooled.
        init_std: standard deviation of the linear layers' initial weights.
        layers: number of linear layers; all start equal.
        tune_blocks: number of the encoder's last blocks that are trained, or `all`; frozen modules stay in eval mode.

    Raises ValueError where the encoder hides patches, has no class token to pool, or has too few blocks.
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
            trunc_normal_(head.weight, init_std)
        nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(layers))  # so that only their rates differ
        self._frozen = [] if tune_blocks == "all" else freeze(encoder, tune_blocks)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """Class scores of normalised images, (L, B, K)."""
        features_BD = self.norm(self.encoder(img_BCHW).pooled(self.pool))
        return torch.stack([head(features_BD) for head in self.heads])

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


def finetune_classifier(
    encoder: Encoder, classes: int, head: FinetuneHeadSettings, frozen: FreezeSettings
) -> Classifier:
    """The classifier of fine-tuning, with a LayerNorm before the linear layer where the settings ask for it."""
    norm = nn.LayerNorm(encoder.spec.width, eps=1e-6) if head.norm else nn.Identity()
    return Classifier(encoder, norm, classes, head.pool, head.init_std, tune_blocks=frozen.tune_blocks)


def probe_classifier(encoder: Encoder, classes: int, head: ProbeHeadSettings) -> Classifier:
    """The classifier of a linear probe: a frozen encoder, a BatchNorm without weights, and the linear layers."""
    width = encoder.spec.width * (2 if head.pool == "both" else 1)
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
    return Classifier(encoder, norm, classes, head.pool, head.init_std, len(head.rates), tune_blocks=0)


def freeze(encoder: Encoder, tune_blocks: float) -> list[nn.Module]:
    """Freezes an encoder except its last blocks and what follows them; returns the modules without trained weights.

    Parameters that were fixed before, such as sine-cosine positions, stay fixed.

    Raises ValueError where the encoder has fewer blocks, or half a block is requested and its blocks have no halves.
    """
    blocks, layers = encoder.blocks(), encoder.layer_parameters()
    if tune_blocks > len(blocks):
        raise ValueError(
            f"FREEZE.tune_blocks is {tune_blocks:g}, and ENCODER.name {encoder.name} has {len(blocks)} blocks: "
            "use fewer, or all"
        )
    first = len(blocks) - int(tune_blocks)  # the first block of which all parameters are trained
    trained = {id(p) for layer in layers[first + 1 :] for p in layer}
    if tune_blocks:
        trained |= {id(p) for p in encoder.above_blocks()}
    if tune_blocks % 1:
        half = encoder.upper_half(blocks[first - 1])
        if not half:
            raise ValueError(
                f"FREEZE.tune_blocks is {tune_blocks:g}: the blocks of ENCODER.name {encoder.name} have no halves: "
                "use an integer"
            )
        block = {id(p) for p in blocks[first - 1].parameters()}
        trained |= {id(p) for p in layers[first] if id(p) not in block}  # the rest of its layer
        trained |= {id(p) for part in half for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)
    return [module for module in encoder.modules() if _is_frozen(module)]


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them is trained."""
    required = [parameter.requires_grad for parameter in module.parameters()]
    return bool(required) and not any(required)
