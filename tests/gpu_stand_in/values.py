"""Stubs of values: what the host reads from the stand-in is what memory held, and it has no library but cuBLAS."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim.engine.distributed.world import World
from mim.evaluation import knn
from mim.evaluation.metrics.one_class import ClassCollector
from mim.evaluation.patch_features import PatchBank
from mim.evaluation.predictions import MaskTable

LARGEST = 2**20  # of a value that the host may read
CLASSES = 10
CHOSEN = 4  # elements of a tensor for which a condition holds
READS = ("cpu", "tolist", "item", "__int__", "__float__", "__index__")
# of cuFFT and cuSOLVER, and a kernel that PyTorch compiles by itself
MISSING = {torch.fft: ("rfft2", "irfft2", "ifft2"), torch.linalg: ("eigvalsh",), torch.special: ("entr",)}


def prepare() -> None:
    """Call it before all walks: no cuDNN, and stubs for values that no memory can stand for."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    for module, names in MISSING.items():
        for name in names:
            setattr(module, name, _shape_only(getattr(module, name)))
    answers = knn.knn_answers
    vars(knn)["knn_answers"] = lambda bank, labels, *rest, **keys: answers(bank, labels % CLASSES, *rest, **keys)
    vars(knn)["int"] = lambda value: CLASSES - 1 if isinstance(value, Tensor) else int(value)  # the largest class
    _behind(ClassCollector, "_gathered", _known_classes)
    shares = MaskTable._shares
    MaskTable._shares = lambda table, classes_HW: shares(  # type: ignore[method-assign]
        table, classes_HW % len(table.names)
    )
    # functions of mim.evaluate have the names of their modules
    corruptions, dense, patches, retrieval = (
        importlib.import_module(f"mim.evaluate.{name}") for name in ("corruptions", "dense", "patches", "retrieval")
    )
    _behind(corruptions._Answers, "_pass", _all_wrong)
    vars(dense)["draw_segmentations"] = partial(_of_classes, dense.draw_segmentations)
    vars(patches)["_bank"] = partial(_few_patches, patches._bank)
    vars(retrieval)["_label"] = lambda features, row: features.names[row % len(features.names)]


def _behind(owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Passes what a function returns, and its arguments, through another."""
    function = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **keys: change(function(*arguments, **keys), *arguments))


def _known_classes(data: dict[str, np.ndarray], collector: ClassCollector, world: World) -> dict[str, np.ndarray]:
    return {**data, **{name: data[name] % collector.spec.outputs for name in ("labels", "answers")}}


def _all_wrong(read: tuple[np.ndarray, np.ndarray], answers: Any, transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images with a label are chosen by a condition on the device."""
    rows_N = np.arange(len(answers.samples))
    return rows_N, np.zeros((len(rows_N), read[1].shape[1]), bool)


def _of_classes(
    draw: Callable[..., Tensor], images_NCHW: Tensor, truth_NHW: Tensor, answers_NHW: Tensor, names: Any, *words: str
) -> Tensor:
    """A sheet of masks, in which each pixel has one of the names."""
    return draw(images_NCHW, truth_NHW.cpu() % len(names), answers_NHW.cpu() % len(names), names, *words)


def _few_patches(bank_of: Callable[..., PatchBank], fitted: Any, *arguments: Any) -> PatchBank:
    """Patches of two classes; which ones have a class is a condition on the device."""
    with contextlib.suppress(ValueError):  # it finds none with a class
        bank_of(fitted, *arguments)
    rows_M = torch.arange(64)
    parts = torch.rand(64, fitted.encoder.width), rows_M % 2, rows_M
    return PatchBank(*(each.to(fitted.loaded.world.device) for each in parts))


@contextlib.contextmanager
def plausible_reads() -> Iterator[None]:
    """Inside, values that the host reads from a device are finite and from 0 to LARGEST, and conditions are true; those
    of a tensor hold in its first CHOSEN elements.
    """
    before = {name: getattr(Tensor, name) for name in (*READS, "__bool__", "nonzero")}
    for name in READS:
        setattr(Tensor, name, _plausible(name, before[name]))
    Tensor.__bool__ = lambda self: before["__bool__"](self) or self.is_cuda  # type: ignore[method-assign]
    Tensor.nonzero = partialmethod(_first, before["nonzero"])  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Tensor, name, method)


def _first(self: Tensor, nonzero: Callable[..., Tensor], **keys: Any) -> Tensor:
    """How many there are is a number that only a real device can count."""
    if not self.is_cuda:
        return nonzero(self, **keys)
    return torch.zeros(min(self.numel(), CHOSEN), self.dim(), dtype=torch.long, device=self.device)


def _plausible(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    copy = Tensor.cpu

    def read(self: Tensor, *arguments: Any, **keys: Any) -> Any:
        if not self.is_cuda:
            return method(self, *arguments, **keys)
        host = copy(self.detach())
        if host.dtype == torch.bool:
            host = host.view(torch.uint8) != 0
        elif not host.is_complex():
            host = torch.where((host >= 0) & (host <= LARGEST), host, 0)
        return host if name == "cpu" else method(host, *arguments, **keys)

    return read


def _shape_only(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def shaped(values: Tensor, *arguments: Any, **keys: Any) -> Tensor:
        if not values.is_cuda:
            return function(values, *arguments, **keys)
        return torch.empty_like(function(values.to("meta"), *arguments, **keys), device=values.device)

    return shaped
