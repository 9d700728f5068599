"""GpuRules: what a training step keeps in the memory of a GPU, on a machine without one.

Shapes: B batch, H heads, N tokens, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

IN_FP32 = {  # under autocast on a GPU; on a CPU in the type of their input
    *(F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.normalize),
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax),
}


class GpuRules(TorchFunctionMode):
    """Inside, operations on the CPU keep the tensors that they keep on a GPU.

    Some operations under autocast run in fp32, and attention is one fused kernel. The attention computes nothing, so
    this is for fake tensors only. Sources: the operations that CUDA's autocast runs in fp32, in PyTorch's
    documentation; PyTorch's memory-efficient attention, which keeps one number for each row of the scores.
    """

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under these rules, also in a backward pass, for which PyTorch turns them off.

        Activation checkpointing runs blocks again there.
        """

        def run_under_rules(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return run_under_rules

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        autocast = torch.is_autocast_enabled("cpu")
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs, dtype=torch.get_autocast_dtype("cpu") if autocast else None)
        if autocast and function in IN_FP32:
            args = tuple(_to_fp32(value) for value in args)
            kwargs = {name: _to_fp32(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dtype: torch.dtype | None, **_: Any
) -> Tensor:
    inputs = [query, key, value, attn_mask]
    if dtype is not None:
        inputs = [part if part is None or part.dtype == torch.bool else part.to(dtype) for part in inputs]
    return _Fused.apply(*inputs)


class _Fused(torch.autograd.Function):
    """The memory of a fused kernel for softmax(Q K^T + mask) V, forward and backward. Its values are undefined."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out_BHND = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser_BHN = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out_BHND, normaliser_BHN)
        return out_BHND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mask, _, normaliser_BHN = ctx.saved_tensors
        sums_BHND = torch.empty_like(query, dtype=torch.float32)  # the query's gradient, as it is accumulated
        dots_BHN = torch.empty_like(normaliser_BHN)
        results = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        del sums_BHND, dots_BHN
        if mask is None or not ctx.needs_input_grad[3]:
            return (*results, None)
        scores_BHNN = mask.new_empty(*query.shape[:-1], key.shape[-2])  # their gradients
        return (*results, scores_BHNN.sum_to_size(mask.shape))
