"""GpuRules: on a machine without a GPU, what a training step would keep in the memory of one.

Shapes: B batch, H heads, N tokens, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDE = {  # in fp32 under autocast on a GPU, in the type of their input on a CPU
    *(F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.normalize),
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax),
}


class GpuRules(TorchFunctionMode):
    """Inside, tensors of the CPU are kept as on a GPU: autocast's wide operations, and attention as one fused kernel.

    It is of use with fake tensors alone, because the attention computes nothing. Source: PyTorch's list of operations
    that CUDA's autocast runs in float32; its memory-efficient attention, which keeps one number a row of the scores.
    """

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under these rules wherever it is called: PyTorch turns them off in a backward pass, where blocks
        whose activations were not kept are run again.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return run

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lowered = torch.is_autocast_enabled("cpu")
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs, dtype=torch.get_autocast_dtype("cpu") if lowered else None)
        if lowered and function in WIDE:
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dtype: torch.dtype | None, **_: Any
) -> Tensor:
    given = [query, key, value, attn_mask]
    if dtype is not None:
        given = [part if part is None or part.dtype == torch.bool else part.to(dtype) for part in given]
    return _Fused.apply(*given)


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps of softmax(Q K^T + mask) V, and what its backward pass takes; values are anything."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out_BHND = query.new_empty(*query.shape[:-1], value.shape[-1])
        normaliser_BHN = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out_BHND, normaliser_BHN)
        return out_BHND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, mask, _, normaliser_BHN = ctx.saved_tensors
        sums_BHND = torch.empty_like(query, dtype=torch.float32)  # the query's gradient while it is summed up
        dots_BHN = torch.empty_like(normaliser_BHN)
        found = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        del sums_BHND, dots_BHN
        if mask is None or not ctx.needs_input_grad[3]:
            return (*found, None)
        scores = (
            *query.shape[:-1],
            key.shape[-2],
        )  # the gradient of every score before it is summed to the mask's shape
        return (*found, mask.new_empty(scores).sum_to_size(mask.shape))
