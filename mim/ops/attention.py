"""Attention modules: heads of a width of their own, and the choice of the kernel, module by module."""

from typing import Any

import torch
from timm.layers import Attention
from torch import nn


def attention_layer(head_width: int) -> type[Attention]:
    """timm's attention with heads of this width; 0: of width / heads."""
    if not head_width:
        return Attention

    class WideAttention(Attention):
        """timm's attention with heads of a given width."""

        def __init__(self, dim: int, num_heads: int = 8, **arguments: Any):
            super().__init__(dim, num_heads, attn_head_dim=head_width, **arguments)

    return WideAttention


def choose_attention(model: nn.Module, device: torch.device) -> None:
    """Fused kernels on an accelerator, explicit products on a CPU, where the fused backward is slow at these shapes.

    Sets `fused_attn` on each of timm's attention modules and leaves timm's global switch alone.
    """
    for module in model.modules():
        if isinstance(vars(module).get("fused_attn"), bool):
            vars(module)["fused_attn"] = device.type != "cpu"
