"""The choice of attention kernel, module by module."""

import torch
from torch import nn


def choose_attention(model: nn.Module, device: torch.device) -> None:
    """Fused kernels on an accelerator, explicit products on a CPU, where the fused backward is slow at these shapes.

    Sets `fused_attn` on each of timm's attention modules and leaves timm's global switch alone.
    """
    for module in model.modules():
        if isinstance(vars(module).get("fused_attn"), bool):
            vars(module)["fused_attn"] = device.type != "cpu"
