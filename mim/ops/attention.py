"""The choice of attention kernel, module by module."""

import torch
from torch import nn


def choose_attention(model: nn.Module, device: torch.device) -> None:
    """Fused scaled-dot-product kernels on an accelerator, explicit matrix products on a CPU.

    On a CPU the fused kernel's backward is slow at these shapes. Sets `fused_attn` on each of timm's attention
    modules and leaves timm's global switch alone. Both ways compute the same function.
    """
    for module in model.modules():
        if isinstance(vars(module).get("fused_attn"), bool):
            vars(module)["fused_attn"] = device.type != "cpu"
