"""Retrieval: the nearest images by features, and how well they agree in class.

Shapes: M images that are searched, N queries, D feature width, k neighbours, J candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim.evaluation.metrics.bootstrap import RESAMPLES, Measured

QUERIES_AT_ONCE = 256
SPARE = 32  # candidates beyond k, of which exact products choose


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest images of each query, the nearest first."""

    rows_Nk: Tensor  # int64, positions among the images that are searched
    similarity_Nk: Tensor  # cosine, float64


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def neighbours(bank_MD: Tensor, queries_ND: Tensor, k: int, own: bool = False, faiss: bool | None = None) -> Neighbours:
    """The k nearest images by cosine similarity, all of them where there are fewer; all tensors on the CPU.

    Candidates come from faiss's exact index or from PyTorch, in float32. Both times products in float64 order them, and
    of equal ones the first row is the nearer, so that the result is the same.

    Args:
        own: whether query i is image i, which is then no neighbour of itself.
        faiss: whether faiss searches; None: where it is installed.
    """
    bank_MD, queries_ND = F.normalize(bank_MD.float(), dim=1), F.normalize(queries_ND.float(), dim=1)
    count = min(k + own + SPARE, len(bank_MD))
    use_faiss = has_faiss() if faiss is None else faiss
    candidates_NJ = (_by_faiss if use_faiss else _by_torch)(bank_MD, queries_ND, count)
    most = min(k, len(bank_MD) - own)
    rows, similarities = [], []
    for start in range(0, len(queries_ND), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        rows_NJ = candidates_NJ[part].sort(dim=1).values  # so that the stable sort below has the first row first
        query_N1D = queries_ND[part, None].double()
        similarity_NJ = (query_N1D * bank_MD[rows_NJ].double()).sum(dim=2)
        if own:
            itself_NJ = rows_NJ == torch.arange(start, start + len(rows_NJ))[:, None]
            similarity_NJ = similarity_NJ.masked_fill(itself_NJ, -torch.inf)
        ordered = similarity_NJ.sort(dim=1, descending=True, stable=True)
        similarities.append(ordered.values[:, :most])
        rows.append(rows_NJ.gather(1, ordered.indices[:, :most]))
    nothing = torch.empty(0, max(most, 0))
    return Neighbours(torch.cat([nothing.long(), *rows]), torch.cat([nothing.double(), *similarities]))


def _by_torch(bank_MD: Tensor, queries_ND: Tensor, count: int) -> Tensor:
    parts = [(part_ND @ bank_MD.T).topk(count, dim=1).indices for part_ND in queries_ND.split(QUERIES_AT_ONCE)]
    return torch.cat(parts)


def _by_faiss(bank_MD: Tensor, queries_ND: Tensor, count: int) -> Tensor:
    import faiss

    index = faiss.IndexFlatIP(bank_MD.shape[1])
    index.add(bank_MD.numpy())
    return torch.from_numpy(index.search(queries_ND.numpy(), count)[1])


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """How well neighbours agree in class, over the queries for which another image has their class."""

    mean_precision: float  # mAP@k
    recall: dict[int, float]  # by k: share of queries with an image of their class among the k nearest
    queries: int
    intervals: dict[str, tuple[float, float]]  # 95%, by `map` and the k of recall, such as `5`; see bootstrap.py


def retrieval_scores(
    classes_Nk: Tensor, query_classes_N: Tensor, bank_classes_M: Tensor, ks: Sequence[int], own: bool = False
) -> RetrievalScores:
    """Mean average precision at the number of neighbours, and recall at each of `ks`.

    The average precision of a query is the sum of the precisions at the places of its right neighbours, over
    min(k, R), where R images have its class. A class of -1 is none: such a query does not count, and such a neighbour
    is wrong. Source: Weyand et al. 2020, arXiv:2004.01804, section 4 (mAP@100); Song et al. 2016, arXiv:1511.06452
    (Recall@K).

    Args:
        classes_Nk: the class of each neighbour, the nearest first.
        own: whether the queries are among the images of `bank_classes_M`, so that each has one image less of its class.
    """
    images = torch.bincount(bank_classes_M[bank_classes_M >= 0], minlength=int(query_classes_N.max().clamp(min=0)) + 1)
    relevant_N = images[query_classes_N.clamp(min=0)] - int(own)
    counted_N = (query_classes_N >= 0) & (relevant_N > 0)
    right_Nk = (classes_Nk == query_classes_N[:, None])[counted_N].double()
    if not len(right_Nk):
        return RetrievalScores(float("nan"), dict.fromkeys(ks, float("nan")), 0, {})
    place_k = torch.arange(1, right_Nk.shape[1] + 1, dtype=torch.float64)
    precision_Nk = right_Nk.cumsum(dim=1) / place_k
    most_N = relevant_N[counted_N].clamp(max=right_Nk.shape[1])
    average_N = (precision_Nk * right_Nk).sum(dim=1) / most_N
    of_query = {"map": average_N.numpy(), **{str(k): right_Nk[:, :k].amax(dim=1).numpy() for k in ks}}
    measured = Measured(partial(_means, of_query), len(right_Nk) * len(of_query))
    resamples = measured.resamples(RESAMPLES) if len(right_Nk) > 1 else 0
    intervals = measured.intervals(np.arange(len(right_Nk)), resamples, seed=0) if resamples else {}
    values = measured.values(len(right_Nk))
    return RetrievalScores(values["map"], {k: values[str(k)] for k in ks}, len(right_Nk), intervals)


def _means(of_query: dict[str, np.ndarray], weights_NR: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value_N @ weights_NR / weights_NR.sum(axis=0) for name, value_N in of_query.items()}
