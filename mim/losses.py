"""Loss: losses of single entries, averaged over the hidden (and predicted) cells.

Shapes: B batch, C channels of the target, H W entries of the target.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.io.checks import above_zero
from mim.registry import Component
from mim.structures import PatchMask, Prediction, TargetSpec


def _with_shared_keys(init: Any, base: Any) -> Any:
    """A constructor that also takes the keys of `base` that `init` has no argument for."""
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())
    shared = {
        name: parameter
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in signature.parameters
    }
    if not shared or parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        return init

    @functools.wraps(init)
    def with_shared(self: nn.Module, **keys: Any) -> None:
        values = {key: keys.pop(key) for key in shared if key in keys}
        init(self, **keys)
        vars(self).update(values)

    hints = {name: parameter.annotation for name, parameter in shared.items()}
    with_shared.__annotations__ = {**init.__annotations__, **hints}
    with_shared.__signature__ = signature.replace(parameters=[*parameters, *shared.values()])  # type: ignore[attr-defined]
    return with_shared


class Loss(Component, nn.Module, ABC, section="LOSS"):
    """The mean over cells, in fp32 or wider: the sum over cells divided by the number of cells + `eps`.

    Where a masker chooses the cells that count, samples differ in their number, and the loss is the mean over samples
    of each sample's mean: so it does not depend on how a batch is split. Cells with missing pixels never count: the
    others of a sample stand for them, and a sample without any other adds 0.

    To write one, subclass with `name="..."` and implement `elementwise`. The keyword-only arguments of its constructor
    are its keys, and it has `over` and `eps` too, whether the constructor takes them or not.
    Source: MAE, models_mae.py, forward_loss; SimMIM, models/simmim.py, forward.

    Args:
        over: the cells that count: `hidden` (both papers; of a masker that chooses some of these, the chosen ones), or
            `all` of them (the ablations of both papers).
        eps: added to the number of cells; SimMIM's code has 1e-5.
    """

    terms: tuple[str, ...] = ()  # names of the losses that it is the sum of
    directions_only: ClassVar[bool] = False  # whether the length of a predicted vector has no effect

    def __init__(self, *, over: Literal["hidden", "all"] = "hidden", eps: float = 0.0):
        super().__init__()
        self.over, self.eps = over, eps

    def __init_subclass__(cls, **kwargs: Any) -> None:
        init = vars(cls).get("__init__")
        if init is not None:
            cls.__init__ = _with_shared_keys(init, Loss.__init__)  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    def check(self, target: TargetSpec) -> None:
        """Raises ValueError for a target that this loss cannot learn."""

    def of(self, label: str) -> "Loss":
        """The loss of a target, by its label; a single target has none."""
        return self

    def constant(self, mean_C: Tensor) -> Tensor:
        """A prediction (C,) for every entry, from the mean of the target: what val/baseline is the loss of."""
        return mean_C

    def as_target(self, prediction_BCHW: Tensor) -> Tensor:
        """A prediction on the scale of the target, for pictures; by default the prediction itself."""
        return prediction_BCHW

    @abstractmethod
    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The loss of each entry, (B, C, H, W)."""

    def forward(self, prediction: Prediction, target_BCHW: Tensor, mask: PatchMask) -> Tensor:
        """The scalar loss."""
        height, width = target_BCHW.shape[-2:]
        wide = torch.promote_types(target_BCHW.dtype, torch.float32)
        error_BCHW = self.elementwise(prediction.map_BCHW.to(wide), target_BCHW.to(wide))
        if error_BCHW.shape != target_BCHW.shape:
            raise TypeError(
                f"LOSS.name {self.name}: elementwise returned {tuple(error_BCHW.shape)}, not a loss for each entry of "
                f"{tuple(target_BCHW.shape)}"
            )
        error_BHW = error_BCHW.mean(dim=1)
        counted_BHW = mask.predicted_at(height, width) if self.over == "hidden" else torch.ones_like(error_BHW)
        if prediction.predicted_BHW is not None:
            counted_BHW = counted_BHW * PatchMask(prediction.predicted_BHW).at(height, width)
        complete_BHW, cells_BHW = mask.complete_at(height, width), counted_BHW.to(wide)
        counted_BHW = cells_BHW if complete_BHW is None else cells_BHW * complete_BHW
        if mask.predicted_BHW is None:
            if complete_BHW is not None:  # the cells of a sample that count stand for all of its cells
                count_B11, cells_B11 = (each.sum(dim=(1, 2), keepdim=True) for each in (counted_BHW, cells_BHW))
                counted_BHW = counted_BHW * (cells_B11 / count_B11.clamp(min=1))
            return (error_BHW * counted_BHW).sum() / (cells_BHW.sum() + self.eps)
        sums_B, counts_B = (each_BHW.sum(dim=(1, 2)) for each_BHW in (error_BHW * counted_BHW, counted_BHW))
        return (sums_B / (counts_B + self.eps).clamp(min=1)).mean()  # a head may have decoded none of a sample's cells

    def with_terms(
        self, prediction: Prediction, target_BCHW: Tensor, mask: PatchMask
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the losses that it is the sum of, by name: none, because it is one."""
        return self(prediction, target_BCHW, mask), {}


class MSE(Loss, name="mse"):
    """Squared error (MAE)."""

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return (prediction_BCHW - target_BCHW) ** 2


class L1(Loss, name="l1"):
    """Absolute error (SimMIM)."""

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return (prediction_BCHW - target_BCHW).abs()


class SmoothL1(Loss, name="smooth_l1"):
    """Squared below `beta`, absolute above (SimMIM's ablation of targets).

    Args:
        beta: the difference at which the loss becomes linear; positive.
    """

    def __init__(self, *, beta: float = 1.0, **shared: Any):
        super().__init__(**shared)
        above_zero("LOSS", beta=beta)
        self.beta = beta

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction_BCHW, target_BCHW, beta=self.beta, reduction="none")


class Huber(Loss, name="huber"):
    """Half the squared error below `delta`, growing linearly above: `delta` times smooth_l1 of that `beta`.

    Args:
        delta: the difference at which the loss becomes linear; positive.
    """

    def __init__(self, *, delta: float = 1.0, **shared: Any):
        super().__init__(**shared)
        above_zero("LOSS", delta=delta)
        self.delta = delta

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return F.huber_loss(prediction_BCHW, target_BCHW, delta=self.delta, reduction="none")


class Cosine(Loss, name="cosine"):
    """1 - cos of the angle between the predicted and the true vector of an entry, over the channels of the target.

    For features: the length of a vector does not count. A target of one channel has no direction but its sign, so that
    nothing would be learned.
    """

    directions_only = True

    def check(self, target: TargetSpec) -> None:
        if target.channels < 2:
            raise ValueError(
                "LOSS.name cosine compares directions, and a target of one channel has none: use LOSS.name mse or l1, "
                "or another TARGET.name"
            )

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        shares_BCHW = F.normalize(prediction_BCHW, dim=1) * F.normalize(target_BCHW, dim=1)
        return 1 - prediction_BCHW.shape[1] * shares_BCHW  # its mean over channels is 1 - cos


class CrossEntropy(Loss, name="cross_entropy"):
    """-sum over channels of t log softmax(p / temperature): the prediction p is logits, the target t probabilities.

    It is least, the entropy of the target, where the two distributions are equal.

    Source: BEiT (Bao et al., arXiv:2106.08254), tokens, without a temperature; CAPI (Darcet et al., arXiv:2502.08769),
    train_capi.py, 0.12, on logits that are products of unit vectors.

    Args:
        temperature: what logits are divided by, above 0.
    """

    def __init__(self, *, temperature: float = 1.0, **shared: Any):
        super().__init__(**shared)
        above_zero("LOSS", temperature=temperature)
        self.temperature = temperature

    def check(self, target: TargetSpec) -> None:
        if not target.distribution or target.channels < 2:
            raise ValueError(
                f"LOSS.name {self.name} compares distributions, and this target has none: its channels are not "
                "probabilities of two or more classes. Use LOSS.name mse or l1, or another TARGET.name"
            )

    def constant(self, mean_C: Tensor) -> Tensor:
        least = torch.finfo(mean_C.dtype).tiny  # a class that never occurs
        return self.temperature * mean_C.clamp(min=least).log()

    def as_target(self, prediction_BCHW: Tensor) -> Tensor:
        return (prediction_BCHW / self.temperature).softmax(dim=1)

    def elementwise(self, prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        log_BCHW = (prediction_BCHW / self.temperature).log_softmax(dim=1)
        return -target_BCHW.shape[1] * target_BCHW * log_BCHW  # its mean over channels is the sum above
