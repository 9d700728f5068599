"""Features of a frozen encoder, and the accuracy of a nearest-neighbour classifier on them.

Shapes: M bank samples, N queries, D feature width.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.encoders import Encoder
from mim.structures import Batch

QUERIES_AT_ONCE = 512


def mean_features(
    encoder: Encoder, normalize: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean patch token of each unmasked image, (N, D) float32, and the labels (N,), in the order of the batches."""
    features, labels = [torch.empty(0, encoder.spec.width, device=device)], [torch.empty(0, dtype=torch.long)]
    for batch in batches:
        tokens_BND = encoder(normalize(batch.images_BCHW.to(device))).tokens_BND
        features.append(tokens_BND.float().mean(dim=1))
        labels.append(batch.labels_B)
    return torch.cat(features), torch.cat(labels).to(device)


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def knn_accuracy(
    bank_MD: Tensor, bank_labels_M: Tensor, queries_ND: Tensor, labels_N: Tensor, k: int, temperature: float
) -> float:
    """Share of queries whose class wins a vote of the k nearest bank samples by cosine similarity s.

    A neighbour's vote weighs exp(s / temperature). Source: Wu et al. 2018, section 3.4 (temperature .07).
    """
    bank_MD, queries_ND = F.normalize(bank_MD.float(), dim=1), F.normalize(queries_ND.float(), dim=1)
    classes = int(torch.cat([bank_labels_M, labels_N]).max()) + 1  # host sync
    right = 0
    for rows_ND, truth_N in zip(queries_ND.split(QUERIES_AT_ONCE), labels_N.split(QUERIES_AT_ONCE), strict=True):
        similarity_Nk, nearest_Nk = (rows_ND @ bank_MD.T).topk(min(k, len(bank_MD)), dim=1)
        votes_NC = torch.zeros(len(rows_ND), classes, device=rows_ND.device)
        weights_Nk = ((similarity_Nk - 1) / temperature).exp()
        votes_NC.scatter_add_(1, bank_labels_M[nearest_Nk], weights_Nk)
        right += int((votes_NC.argmax(dim=1) == truth_N).sum())  # host sync
    return right / len(labels_N)
