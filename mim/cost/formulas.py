"""Formulas of operations for PyTorch's FlopCounterMode, where it has none, or one that is not a model's own work.

A formula gets the shapes of an operation's tensors. A multiply-add counts as two; biases, masks and scales are free.

Shapes: B batch, H heads, N queries, M keys, D width of a query, V width of a value.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
aten = torch.ops.aten


def operation_counter() -> FlopCounterMode:
    """PyTorch's counter with the formulas of this file."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


def convolution_backward(
    gradient: Shape,
    input_: Shape,
    weight: Shape,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_others: Any,
) -> int:
    """Each of the gradients of input and weight costs as much as the forward pass, in which every weight meets every
    position of the output, or of the input where the convolution is transposed.

    Differs from PyTorch 2.14: there the gradient of the weight costs as much as without groups.
    """
    positions = prod((input_ if transposed else gradient)[2:])
    return sum(wanted[:2]) * 2 * input_[0] * positions * prod(weight)


def attention(query_BHND: Shape, key_BHMD: Shape, value_BHMV: Shape, *_others: Any, **_more: Any) -> int:
    """Scores, and the sum of the values by them. Keys that a mask hides count too."""
    return 2 * prod(query_BHND[:-1]) * key_BHMD[-2] * (query_BHND[-1] + value_BHMV[-1])


def attention_backward(_gradient: Shape, query: Shape, key: Shape, value: Shape, *_others: Any, **_more: Any) -> int:
    """The gradients of two matrix products.

    Differs from PyTorch 2.14, which counts once more the scores that a fused kernel computes again: the same model had
    5 / 4 of the operations with one kernel and not with another.
    """
    return 2 * attention(query, key, value)


def matrix_vector(matrix: Shape, *_others: Any, **_more: Any) -> int:
    """2 x rows x columns; of two vectors, 2 x their length."""
    return 2 * prod(matrix)


def matrix_products(left: Shape, right: Shape, *_others: Any, **_more: Any) -> int:
    """2 x rows x inner x columns, times the number of matrices."""
    return 2 * prod(left) * right[-1]


def added_to(formula: Callable[..., int]) -> Callable[..., int]:
    """The formula of an operation that adds its product to its first tensor."""
    return lambda _first, *others, **more: formula(*others, **more)


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_fused_attention_overrideable: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten._scaled_dot_product_fused_attention_overrideable_backward: attention_backward,
    aten._scaled_dot_product_flash_attention_backward: attention_backward,
    aten._scaled_dot_product_efficient_attention_backward: attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward: attention_backward,
    aten.dot: matrix_vector,
    aten.vdot: matrix_vector,
    aten.mv: matrix_vector,
    aten.addmv: added_to(matrix_vector),
    aten.addmm_: added_to(matrix_products),
    aten.addbmm: added_to(matrix_products),
    aten.baddbmm_: added_to(matrix_products),
    aten._int_mm: matrix_products,
}
