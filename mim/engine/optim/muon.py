"""Muon: the steps of weight matrices are made orthogonal. All other parameters take steps of AdamW.

Shapes: G matrices of one shape, M rows (outputs), N columns (inputs, for a convolution times the size of its kernel).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor

from mim.engine.optim.base import Optimizer, check_betas, check_momentum
from mim.engine.optim.steady import restore
from mim.engine.precision import product_dtype
from mim.io.checks import at_least

SMALLEST, LONGEST = 4, 128  # of a matrix: its shorter side, and how many times as long the other may be
QUINTIC = [  # coefficients of Newton-Schulz, one iteration a line. Source: modded-nanogpt, train_gpt_medium.py
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
AT_ONCE = 2**24  # numbers in matrices that are made orthogonal at once: 64 MiB in float32


class _Matrix(NamedTuple):
    weight: Tensor
    gradient: Tensor
    group: dict[str, Any]


class Muon(Optimizer, name="muon"):
    """Muon for weight matrices, AdamW for all else, under one learning rate and weight decay.

    The step of a matrix is the momentum of its gradients with all singular values moved near 1 (Newton-Schulz, in bf16
    where the device has bf16 products, else in fp32; matrices of one shape at once). A matrix is a linear layer or a
    convolution: a parameter with weight decay whose (M, N) has a shorter side of at least 4 and a longer one of at most
    128 times that. So biases, norms, tokens, depthwise convolutions and what `no_decay` names take the steps of AdamW;
    name tables there that are no matrices, such as relative positions.

    With `step_size: adamw` base_lr and weight_decay are as with AdamW: a step has AdamW's usual size, and both are
    taken over from its recipe. With the others the rate is one of its own, such as 0.02, and AdamW shares it. Weight
    decay is that of AdamW, weight x rate x weight_decay, in both.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (momentum 0.95, Nesterov, 5 iterations); Liu et al.,
    arXiv:2502.16982, section 2.2 (`adamw`, and weight decay); timm, optim/muon.py, whose steps and matrices these
    are, but for rounding.
    Differs from: timm's takes matrices by their shape alone; its AdamW is NAdamW under Nesterov, with an eps of 1e-7.

    Args:
        momentum: share of the previous momentum in the next, at least 0 and below 1.
        nesterov: orthogonalise the gradient moved towards the momentum, not the momentum itself.
        iterations: of Newton-Schulz, with timm's `quintic` coefficients.
        step_size: factor on the rate of a matrix: `adamw` 0.2 sqrt(max(M, N)); `muon` sqrt(max(1, M / N)), which is the
            original; `spectral` sqrt(M / N) (Pethick et al., arXiv:2502.07529).
        betas: decay rates of AdamW's two moments, each at least 0 and below 1.
        eps: added to the denominator of a step of AdamW.
    """

    sharded = False

    def __init__(
        self,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
        step_size: Literal["adamw", "muon", "spectral"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        **shared: Any,
    ):
        super().__init__(**shared)
        at_least("OPTIMIZER", 0, eps=eps)
        at_least("OPTIMIZER", 1, iterations=iterations)
        check_momentum(momentum)
        check_betas(betas)
        self.betas, self.eps = betas, eps
        self.momentum, self.nesterov, self.iterations = momentum, nesterov, iterations
        self.step_size = {"adamw": "match_rms_adamw", "muon": "original", "spectral": "rms_to_rms"}[step_size]

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        adamw = torch.optim.AdamW([torch.zeros(1)], lr=0.0, betas=self.betas, eps=self.eps, fused=True)
        return _MuonAndAdamW(groups, adamw, self)


class _MuonAndAdamW(torch.optim.Optimizer):
    """Muon's steps and PyTorch's AdamW on one set of groups. Where `found_inf` is set, a step changes nothing.

    Args:
        groups: those of parameter_groups.
        adamw: the optimizer that takes the steps of what is no matrix; its own groups are not used.
        muon: the settings of the others.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # else a GradScaler makes the host wait for the device in each step

    def __init__(self, groups: list[dict], adamw: torch.optim.AdamW, muon: Muon):
        super().__init__(groups, dict(adamw.defaults))
        self._adamw, self._muon = adamw, muon

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        matrices: list[_Matrix] = []
        others = []
        for group in self.param_groups:
            apart = [weight for weight in group["params"] if not group["no_weight_decay"] and is_matrix(weight)]
            rest = set(group["params"]).difference(apart)
            others.append({**group, "params": [weight for weight in group["params"] if weight in rest]})
            matrices += [_Matrix(weight, weight.grad, group) for weight in apart if weight.grad is not None]
        for batch in _batches(matrices):
            self._step_batch(batch)
        self._adamw.param_groups, self._adamw.state = others, self.state
        self._adamw.grad_scale, self._adamw.found_inf = None, self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()

    def _step_batch(self, batch: list[_Matrix]) -> None:
        """A step of matrices of one shape."""
        muon, weights, gradients = self._muon, [each.weight for each in batch], [each.gradient for each in batch]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        before = [] if self.found_inf is None else [value.clone() for value in (*weights, *momenta)]
        torch._foreach_lerp_(momenta, gradients, 1 - muon.momentum)
        pushes = torch._foreach_lerp(gradients, momenta, muon.momentum) if muon.nesterov else momenta
        push_GMN = torch.stack([push.flatten(1) for push in pushes])
        dtype = product_dtype("auto", push_GMN.device)
        step_GMN = zeropower_via_newtonschulz(push_GMN, muon.iterations, QUINTIC, dtype=dtype).to(push_GMN.dtype)
        size = get_lr_scale(step_GMN.shape[1:], muon.step_size)
        for (weight, _, group), step_MN in zip(batch, step_GMN, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(step_MN.view_as(weight) * (group["lr"] * size))
        if self.found_inf is not None:
            restore(self.found_inf, zip((*weights, *momenta), before, strict=True))


def _batches(matrices: list[_Matrix]) -> Iterator[list[_Matrix]]:
    """Those of one shape, type and device together, up to AT_ONCE numbers."""
    alike: dict[tuple, list[_Matrix]] = defaultdict(list)
    for matrix in matrices:
        alike[matrix.weight.shape, matrix.weight.dtype, matrix.weight.device].append(matrix)
    for same in alike.values():
        count = max(1, AT_ONCE // same[0].weight.numel())
        yield from (same[start : start + count] for start in range(0, len(same), count))


def is_matrix(weight: Tensor) -> bool:
    """Whether a parameter has the shape of a weight matrix. Source: timm, optim/muon.py, _is_suitable_for_muon."""
    if weight.ndim < 2 or min(weight.shape[:2]) == 1:
        return False
    sides = sorted((weight.shape[0], weight.shape[1:].numel()))
    return sides[0] >= SMALLEST and sides[1] <= LONGEST * sides[0]
