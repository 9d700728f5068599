"""Freezing: the part of an encoder that fine-tuning trains."""

from torch import nn

from mim.encoders import Encoder


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
