"""Attention modules: heads of a width of their own, and the choice of the kernel, module by module.

Shapes: B batch, N tokens, D width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

LARGEST_SCORES = 2**25  # bytes; glibc gets each larger block from the system anew, filled with zeros
CHOICE = ("fused_attn", "by_size")  # attributes of a module: whether it uses the fused kernel, and may choose itself


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
    """Fused kernels on an accelerator, explicit products on a CPU, where the fused backward is slow at most shapes.

    On a CPU, timm's attention without a bias takes the fused kernel in those eager calls in float32 whose scores need
    more than LARGEST_SCORES: up to twice as fast there, slower below (benchmarks/attention.py).

    Sets `fused_attn` on each of timm's attention modules and leaves timm's global switch alone.
    """
    for module in _with_choice(model.modules()):
        unbiased = isinstance(module, Attention) and type(module).forward is Attention.forward
        by_size = unbiased and device.type == "cpu"
        if by_size and _choose_by_size not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_choose_by_size)
            module.register_forward_hook(_choose_explicit, always_call=True)
        vars(module).update(fused_attn=device.type != "cpu", by_size=by_size)


@contextmanager
def attention_kernels(modules: Iterable[nn.Module], fused: bool) -> Iterator[None]:
    """Inside, those of the modules that have the choice use fused kernels, or explicit products with a softmax."""
    before = [(module, {key: vars(module).get(key) for key in CHOICE}) for module in _with_choice(modules)]
    for module, _ in before:
        vars(module).update(fused_attn=fused, by_size=False)
    try:
        yield
    finally:
        for module, choice in before:
            vars(module).update(choice)


def _choose_by_size(module: Any, inputs: tuple[Tensor, ...]) -> None:
    """Before a call of timm's attention with tokens (B, N, D). A compiler would have to trace the change."""
    if not module.by_size or torch.compiler.is_compiling():
        return
    tokens_BND = inputs[0]
    batch, tokens, _ = tokens_BND.shape
    exact = tokens_BND.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    scores = batch * module.num_heads * tokens**2 * tokens_BND.element_size()
    module.fused_attn = tokens_BND.device.type == "cpu" and exact and scores > LARGEST_SCORES


def _choose_explicit(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """After that call, also where it failed."""
    if module.by_size and not torch.compiler.is_compiling():
        module.fused_attn = False


def _with_choice(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return [module for module in modules if isinstance(vars(module).get("fused_attn"), bool)]
