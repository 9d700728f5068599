"""Batch: images on their way from the loader to a task, and notes of what happened while they were read.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should be warned of once, though several processes may have seen it.

    about: equal where it is the same thing; text: one line; began, ended: when, in seconds of the system's clock, 0
    where it is no matter of time.
    """

    about: str
    text: str
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Images in their stored type, on the host or a device.

    images_BCHW: uint8, uint16 or float32; labels_B: int64, -1 where there is none; indices: the samples' places in
    the data set; broken: files that could not be read while this batch was made, with the reason; crops_B5: where
    images are whole, what is to be cut out of them, as mim.ops.resample.crop_resize takes it, else None. There are then
    as many rows as crops, and of images a whole share of that; notes: what happened on the way that did no harm.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    indices: tuple[int, ...]
    broken: tuple[tuple[str, str], ...] = ()
    crops_B5: Tensor | None = None
    notes: tuple[Note, ...] = ()

    def pin_memory(self) -> "Batch":
        """In memory from which copies to a GPU need no wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """On a device; the host does not wait for a copy of pinned memory to a GPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Where it was made on another stream of the device: its memory is not free before this one is done with it."""
        for tensor in (self.images_BCHW, self.labels_B, self.crops_B5):
            if tensor is not None:
                tensor.record_stream(stream)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        crops_B5 = None if self.crops_B5 is None else change(self.crops_B5)
        return replace(self, images_BCHW=change(self.images_BCHW), labels_B=change(self.labels_B), crops_B5=crops_B5)
