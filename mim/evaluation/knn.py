"""Features of a frozen encoder, and the accuracy of a nearest-neighbour classifier on them.

Shapes: M bank samples, N queries, D feature width.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.encoders import Encoder
from mim.evaluation.reading import Shown
from mim.structures import Pool

QUERIES_AT_ONCE = 512


def features_of(
    encoder: Encoder, pool: Pool, normalize: Callable[[Tensor], Tensor], shown: Iterable[Shown], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features of unmasked images, (N, D) float32, their labels (N,) and their rows (N,), in the order shown.

    Images that stand in for broken ones are left out.
    """
    width = encoder.spec.width * (2 if pool == "both" else 1)
    features, labels, rows = [torch.empty(0, width, device=device)], [torch.empty(0, dtype=torch.long)], []
    for part in shown:
        images_BCHW = part.batch.images_BCHW[part.own_B].to(device)
        if len(images_BCHW):
            features.append(encoder(normalize(images_BCHW)).pooled(pool).float())
        labels.append(part.batch.labels_B[part.own_B])
        rows += [row for row, own in zip(part.rows, part.own_B.tolist(), strict=True) if own]
    return torch.cat(features), torch.cat(labels).to(device), torch.tensor(rows, dtype=torch.long, device=device)


def knn_accuracy(
    bank_MD: Tensor, bank_labels_M: Tensor, queries_ND: Tensor, labels_N: Tensor, k: int, temperature: float
) -> float:
    """Share of queries whose class wins a vote of the k nearest bank samples by cosine similarity s.

    A neighbour's vote weighs exp(s / temperature). Source: Wu et al. 2018, section 3.4 (temperature .07).
    """
    answers_N = knn_answers(bank_MD, bank_labels_M, queries_ND, k, temperature)
    return int((answers_N == labels_N).sum()) / len(labels_N)  # host sync


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def knn_answers(bank_MD: Tensor, bank_labels_M: Tensor, queries_ND: Tensor, k: int, temperature: float) -> Tensor:
    """The class that wins the vote of each query, (N,) int64; see knn_accuracy."""
    bank_MD, queries_ND = F.normalize(bank_MD.float(), dim=1), F.normalize(queries_ND.float(), dim=1)
    classes = int(bank_labels_M.max()) + 1  # host sync
    answers = []
    for rows_ND in queries_ND.split(QUERIES_AT_ONCE):
        similarity_Nk, nearest_Nk = (rows_ND @ bank_MD.T).topk(min(k, len(bank_MD)), dim=1)
        votes_NC = torch.zeros(len(rows_ND), classes, device=rows_ND.device)
        weights_Nk = ((similarity_Nk - similarity_Nk[:, :1]) / temperature).exp()  # of the nearest: 1, never too small
        votes_NC.scatter_add_(1, bank_labels_M[nearest_Nk], weights_Nk)
        answers.append(votes_NC.argmax(dim=1))
    return torch.cat(answers)
