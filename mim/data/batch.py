"""Batch: images on their way from the dataloader to a task.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Images on the host or a device; where they are to be cropped there, with as many labels as crops."""

    images_BCHW: Tensor  # in their stored type: uint8, uint16 or float32
    labels: Tensor  # (B,), (B, K) or (B, H, W), as the LabelSpec of the data says; (B,) of -1 where there are none
    indices: tuple[int, ...]  # position of each sample in the data set
    broken: tuple[tuple[str, str], ...] = ()  # files that could not be read for this batch, each with the reason
    crops_B5: Tensor | None = None  # for mim.ops.resample.crop_resize, equally many an image; None: cropped already

    def pin_memory(self) -> "Batch":
        """In pinned memory, from which copies to a GPU do not make the host wait."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """On a device. The host does not wait for a copy of pinned memory to a GPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def clone(self) -> "Batch":
        """With tensors of its own."""
        return self._each(Tensor.clone)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps memory that another stream of the device made until this stream has used it."""
        for tensor in (self.images_BCHW, self.labels, self.crops_B5):
            if tensor is not None:
                tensor.record_stream(stream)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        crops_B5 = None if self.crops_B5 is None else change(self.crops_B5)
        return replace(self, images_BCHW=change(self.images_BCHW), labels=change(self.labels), crops_B5=crops_B5)
