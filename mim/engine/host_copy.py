"""HostCopy: a copy of a state in main memory, which further steps leave as it is."""

import math
from collections.abc import Hashable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_with_path

SLAB = 64 * 2**20  # bytes; PyTorch rounds page-locked memory up to a power of two
ALIGNMENT = 64  # bytes


class HostCopy:
    """Copies states of one run, one after the other, into the same memory, which is page-locked for those of a GPU.

    The memory is kept: it is slow to get, and a GPU copies to page-locked memory at the speed of its link.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Tensor] = {}  # by place in the state
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0  # bytes of it

    def take(self, content: dict) -> dict:
        """The content with tensors of its own, all of them ready, and with values that nothing else holds.

        Tensors that share memory do so in the copy, too. The copy before is overwritten.
        """
        copies: dict[Hashable, Tensor] = {}

        def leaf(place: Any, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return deepcopy(value)
            storage = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride()
            if not value.numel() or storage not in copies:
                copies[storage] = self._buffer(place, value).copy_(value.detach(), non_blocking=True)
            return copies[storage]

        copied = tree_map_with_path(leaf, content)
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _buffer(self, place: Hashable, value: Tensor) -> Tensor:
        """Memory for a tensor: that of its last copy, where it fits."""
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            like = torch.empty_like(value, device="meta")  # with the strides of a copy
            buffer = self._memory(value).view(value.dtype).as_strided(like.shape, like.stride())
            self._buffers[place] = buffer
        return buffer

    def _memory(self, value: Tensor) -> Tensor:
        """Bytes for a tensor, as a tensor that has no others: a file would get those, too."""
        size = value.numel() * value.element_size()
        if not value.is_cuda or not size:
            return torch.empty(size, dtype=torch.uint8)
        if self._used + size > len(self._slab):
            self._slab, self._used = torch.empty(max(SLAB, size), dtype=torch.uint8, pin_memory=True), 0
        begin, self._used = self._used, self._used + math.ceil(size / ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(self._slab.numpy()[begin : begin + size], dtype=torch.uint8)
