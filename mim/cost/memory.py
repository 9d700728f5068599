"""Memory: what holds it at the peak of a training step, by following every tensor from its making to its end."""

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
    """Bytes of tensors at the peak of a training step on one device, by what they are for.

    weights: parameters and buffers; average: a moving average of them; batch: images as stored and as normalised;
    activations: what the forward pass keeps for the backward pass, with the weights' copies in lower precision;
    temporary: what lives for an operation or a few.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    batch: int = 0
    activations: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(slots=True)
class _Storage:
    """bytes, and what they are for; alive: for as long as PyTorch holds the storage."""

    size: int
    kind: str
    alive: weakref.ref


class Followed(TorchDispatchMode):
    """Follows the storage of every tensor that is made inside. Fake tensors, which take no memory, do as well.

    It sees what operations return, and not what a kernel takes for itself and gives back before it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._held: dict[int, _Storage] = {}  # by the address of the storage, which a later one may have again
        self._log: list[tuple[_Storage, bool]] = []  # in order; True where it was made, False where it was freed

    def enter(self, phase: str) -> None:
        """Says what begins now. What was made in `forward` and is still held as that ends are activations."""
        if self._phase == "forward":
            for storage in self._held.values():
                if storage.kind == "forward":
                    storage.kind = "activations"
        self._phase = phase

    def name(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Says what these tensors are for: a field of Memory."""
        for tensor in tensors:
            self._held[self._see(tensor)].kind = kind

    def restart(self) -> None:
        """Forgets what was freed before: the peak is then of what follows."""
        self._log = [(storage, True) for storage in self._held.values()]

    def peak(self) -> Memory:
        """What was held when it was most."""
        total = most = at = 0
        for place, (storage, made) in enumerate(self._log):
            total += storage.size if made else -storage.size
            if total > most:
                most, at = total, place
        held: Counter[str] = Counter()
        known = {field.name for field in fields(Memory)}
        for storage, made in self._log[: at + 1]:
            held[storage.kind if storage.kind in known else "temporary"] += storage.size if made else -storage.size
        return Memory(**held)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address: int = storage._cdata
        if address not in self._held:
            kind = self._phase
            self._held[address] = new = _Storage(
                storage.nbytes(), kind, weakref.ref(storage, lambda _: self._free(address))
            )
            self._log.append((new, True))
        return address

    def _free(self, address: int) -> None:
        self._log.append((self._held.pop(address), False))
