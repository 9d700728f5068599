"""Effective rank: in how many directions vectors spread. Shapes: N vectors, D width."""

import torch
from torch import Tensor


def effective_rank(vectors_ND: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values, as shares of their sum; from 1 to min(N, D). A host sync.

    Vectors that are all 0 have the rank 0. Source: Garrido et al. 2022, arXiv:2210.02885, equation 1.
    """
    wide_ND = vectors_ND.double()
    if wide_ND.shape[0] < wide_ND.shape[1]:
        wide_ND = wide_ND.T
    # the squares of the singular values are the eigenvalues of the smaller product, which is quicker
    values_D = torch.linalg.eigvalsh(wide_ND.T @ wide_ND).clamp(min=0).sqrt()
    if not values_D.sum() > 0:
        return 0.0
    shares_D = values_D / values_D.sum()
    return float(torch.special.entr(shares_D).sum().exp())
