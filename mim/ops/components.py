"""Principal components of vectors, in double precision.

Shapes: M vectors, C channels, K components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """The directions in which vectors differ most, the first one most of all."""

    mean_C: Tensor  # float64, on the CPU, as all of them
    axes_CK: Tensor  # directions of length 1, their largest entry positive
    share_K: Tensor  # of the variance

    @classmethod
    def fit(cls, vectors_MC: Tensor, components: int) -> "PrincipalComponents":
        """The first components of these vectors; as many as there are channels where these are fewer."""
        rows_MC = vectors_MC.double().cpu()
        mean_C = rows_MC.mean(dim=0)
        variance_C, directions_CC = torch.linalg.eigh((rows_MC - mean_C).T @ (rows_MC - mean_C))
        axes_CK = directions_CC.flip(1)[:, :components]
        largest_1K = axes_CK.abs().argmax(dim=0, keepdim=True)
        axes_CK = axes_CK * axes_CK.gather(0, largest_1K).sign()  # either sign is an axis
        variance_C = variance_C.flip(0).clamp(min=0)
        return cls(mean_C, axes_CK, variance_C[:components] / variance_C.sum().clamp(min=1e-300))

    def __call__(self, vectors: Tensor) -> Tensor:
        """The coordinates (..., K) of vectors (..., C), float64 on the CPU."""
        return (vectors.double().cpu() - self.mean_C) @ self.axes_CK
