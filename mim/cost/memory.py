"""Memory at the peak of a training step, by following every tensor from its making to its end."""

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of tensors at the peak of a training step on one device, by purpose."""

    weights: int = 0  # parameters and buffers
    gradients: int = 0  # of the trained parameters, with the buckets in which devices exchange them
    optimizer: int = 0  # state of the optimizer
    average: int = 0  # moving average of the weights
    batch: int = 0  # images, as stored and as normalised
    activations: int = 0  # what the forward pass keeps for the backward pass, with copies of weights in lower precision
    temporary: int = 0  # what lives for a few operations

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(slots=True)
class _Storage:
    size: int  # bytes
    purpose: str
    alive: weakref.ref  # calls back when PyTorch frees the storage


class MemoryTracker(TorchDispatchMode):
    """Follows the storage of every tensor made inside, also of fake tensors, which take no memory.

    It sees what operations return. It does not see what a kernel allocates and frees before it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._storages: dict[int, _Storage] = {}  # by address, which PyTorch can use again later
        self._log: list[tuple[_Storage, bool]] = []  # in order; True where it was made, False where it was freed

    def begin(self, phase: str) -> None:
        """Begins a phase. What was made in `forward` and lives as it ends counts as activations."""
        if self._phase == "forward":
            for storage in self._storages.values():
                if storage.purpose == "forward":
                    storage.purpose = "activations"
        self._phase = phase

    def label(self, purpose: str, tensors: Iterable[Tensor]) -> None:
        """Sets the purpose of tensors: a field of Memory."""
        for tensor in tensors:
            self._storages[self._see(tensor)].purpose = purpose

    def forget_freed(self) -> None:
        """Forgets what was freed so far. The peak is then that of what follows."""
        self._log = [(storage, True) for storage in self._storages.values()]

    def peak(self) -> Memory:
        """The memory at its peak."""
        total = highest = end = 0
        for index, (storage, made) in enumerate(self._log):
            total += storage.size if made else -storage.size
            if total > highest:
                highest, end = total, index + 1
        sizes: Counter[str] = Counter()
        purposes = {field.name for field in fields(Memory)}
        for storage, made in self._log[:end]:
            sizes[storage.purpose if storage.purpose in purposes else "temporary"] += (1 if made else -1) * storage.size
        return Memory(**sizes)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if address not in self._storages:
            alive = weakref.ref(storage, lambda _: self._free(address))
            self._storages[address] = _Storage(storage.nbytes(), self._phase, alive)
            self._log.append((self._storages[address], True))
        return address

    def _free(self, address: int) -> None:
        self._log.append((self._storages.pop(address), False))
