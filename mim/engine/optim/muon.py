"""Muon: the steps of weight matrices are made orthogonal. All other parameters take steps of AdamW.

Shapes: M rows (outputs), N columns (inputs, for a convolution times the size of its kernel).
"""

from typing import Any, Literal

import torch
from timm.optim.muon import muon
from torch import Tensor

from mim.engine.optim.base import Optimizer, check_betas, check_momentum
from mim.engine.optim.steady import restore
from mim.io.checks import at_least

SMALLEST, LONGEST = 4, 128  # of a matrix: its shorter side, and how many times as long the other may be
FIXED = {  # what timm's function wants besides
    **{"eps": 1e-7, "safety_factor": 1.0, "ns_coefficients": "quintic"},
    **{"conv_mode": "flatten", "normalize_spatial": True, "scale_eps": False},
}


class Muon(Optimizer, name="muon"):
    """Muon for weight matrices, AdamW for all else, under one learning rate and weight decay.

    The step of a matrix is the momentum of its gradients with all singular values moved near 1 (Newton-Schulz in
    bf16). A matrix is a linear layer or a convolution: a parameter with weight decay whose (M, N) has a shorter side of
    at least 4 and a longer one of at most 128 times that. So biases, norms, tokens, depthwise convolutions and what
    `no_decay` names take the steps of AdamW; name tables there that are no matrices, such as relative positions.

    With `step_size: adamw` base_lr and weight_decay are as with AdamW: a step has AdamW's usual size, and both are
    taken over from its recipe. With the others the rate is one of its own, such as 0.02, and AdamW shares it. Weight
    decay is that of AdamW, weight x rate x weight_decay, in both.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (momentum 0.95, Nesterov, 5 iterations); Liu et al.,
    arXiv:2502.16982, section 2.2 (`adamw`, and weight decay); timm, optim/muon.py, whose steps and matrices these are.
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
        adjust = {"adamw": "match_rms_adamw", "muon": "original", "spectral": "rms_to_rms"}[step_size]
        self.of_matrices = {"momentum": momentum, "nesterov": nesterov, "ns_steps": iterations, "adjust_lr_fn": adjust}

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        adamw = torch.optim.AdamW([torch.zeros(1)], lr=0.0, betas=self.betas, eps=self.eps, fused=True)
        return _MuonAndAdamW(groups, adamw, {**FIXED, **self.of_matrices})


class _MuonAndAdamW(torch.optim.Optimizer):
    """timm's Muon and PyTorch's AdamW on one set of groups. Where `found_inf` is set, a step changes nothing.

    Args:
        groups: those of parameter_groups.
        adamw: the optimizer that takes the steps of what is no matrix; its own groups are not used.
        of_matrices: the keywords of timm's function.
    """

    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True  # else a GradScaler makes the host wait for the device in each step

    def __init__(self, groups: list[dict], adamw: torch.optim.AdamW, of_matrices: dict[str, Any]):
        super().__init__(groups, dict(adamw.defaults))
        self._adamw, self._of_matrices = adamw, of_matrices

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        others = []
        for group in self.param_groups:
            matrices = [weight for weight in group["params"] if not group["no_weight_decay"] and is_matrix(weight)]
            apart = set(matrices)
            others.append({**group, "params": [weight for weight in group["params"] if weight not in apart]})
            for weight in matrices:
                if weight.grad is not None:
                    self._step_matrix(weight, group)
        self._adamw.param_groups, self._adamw.state = others, self.state
        self._adamw.grad_scale, self._adamw.found_inf = None, self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()

    def _step_matrix(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        values = [weight, state["momentum_buffer"]]
        before = [value.clone() for value in values]
        rate, decay = group["lr"], group["weight_decay"]
        assert weight.grad is not None
        muon([weight], [weight.grad], [values[1]], lr=rate, weight_decay=decay, **self._of_matrices)
        if self.found_inf is not None:
            restore(self.found_inf, zip(values, before, strict=True))


def is_matrix(weight: Tensor) -> bool:
    """Whether a parameter has the shape of a weight matrix. Source: timm, optim/muon.py, _is_suitable_for_muon."""
    if weight.ndim < 2 or min(weight.shape[:2]) == 1:
        return False
    sides = sorted((weight.shape[0], weight.shape[1:].numel()))
    return sides[0] >= SMALLEST and sides[1] <= LONGEST * sides[0]
