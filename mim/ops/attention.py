"""Attention modules: heads of a width of their own, and the choice of the kernel, module by module."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    for module in _with_choice(model.modules()):
        vars(module)["fused_attn"] = device.type != "cpu"


@contextmanager
def attention_kernels(modules: Iterable[nn.Module], fused: bool) -> Iterator[None]:
    """Inside, those of the modules that have the choice use fused kernels, or explicit products with a softmax."""
    before = [(module, vars(module)["fused_attn"]) for module in _with_choice(modules)]
    for module, _ in before:
        vars(module)["fused_attn"] = fused
    try:
        yield
    finally:
        for module, value in before:
            vars(module)["fused_attn"] = value


def _with_choice(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return [module for module in modules if isinstance(vars(module).get("fused_attn"), bool)]
