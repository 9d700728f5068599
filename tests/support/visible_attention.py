"""Attention of any model of timm among visible tokens alone: the scores of hidden keys are minus infinity.

It knows nothing of how mim drops tokens: it acts in PyTorch's own softmax and attention, on timm's whole model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

KeyMask = Callable[[int], Tensor | None]  # of the number of keys: (B, keys) bool, True where hidden; None for no mask

softmax, attention = torch.Tensor.softmax, torch.nn.functional.scaled_dot_product_attention


@contextmanager
def attention_to_visible(hidden_keys: KeyMask) -> Iterator[None]:
    """Inside, no softmax over keys gives a hidden one a share."""

    def masked_softmax(scores: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
        hidden_BK = hidden_keys(scores.shape[-1]) if scores.ndim >= 3 else None
        if hidden_BK is None or scores.shape[0] != len(hidden_BK):
            return softmax(scores, dim, dtype)
        assert dim in (-1, scores.ndim - 1)
        hidden = hidden_BK.view(len(hidden_BK), *(1,) * (scores.ndim - 2), -1)
        return softmax(scores.masked_fill(hidden, -torch.inf), dim, dtype)

    def masked_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        assert dropout_p == 0
        assert not is_causal
        if enable_gqa:
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores + attn_mask
        return masked_softmax(scores) @ v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", masked_softmax)
        patch.setattr(torch, "softmax", masked_softmax)
        patch.setattr(torch.nn.functional, "softmax", masked_softmax)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked_attention)
        yield
