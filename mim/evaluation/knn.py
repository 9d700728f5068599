"""Features of a frozen encoder, and the accuracy of a nearest-neighbour classifier on them.

Shapes: B batch, M bank samples, N samples or queries, D feature width.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.evaluation.reading import EvaluationBatch
from mim.structures import Pool

QUERIES_AT_ONCE = 512


class FeatureTable:
    """Pooled features of unmasked images, collected batch by batch.

    The encoder is in eval mode. pool says how the tokens of an image become one feature.
    """

    def __init__(self, encoder: Encoder, pool: Pool, device: torch.device):
        self.encoder, self.pool, self.device = encoder, pool, device
        width = encoder.spec.width * (2 if pool == "both" else 1)
        self._features, self._labels = [torch.empty(0, width, device=device)], [torch.empty(0, dtype=torch.long)]
        self._rows: list[int] = []

    def add(self, part: EvaluationBatch, img_BCHW: Tensor) -> None:
        """Takes a batch and its preprocessed images."""
        self._features.append(self.encoder(img_BCHW).pooled(self.pool).float())
        self._labels.append(part.batch.labels)
        self._rows += part.rows

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, D) float32, labels (N,) and rows (N,), in the order in which they were added."""
        rows_N = torch.tensor(self._rows, dtype=torch.long, device=self.device)
        return torch.cat(self._features), torch.cat(self._labels).to(self.device), rows_N


def features_of(
    encoder: Encoder, pool: Pool, preprocess: Preprocess, parts: Iterable[EvaluationBatch], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and rows of all these batches; see FeatureTable."""
    table = FeatureTable(encoder, pool, device)
    for part in parts:
        table.add(part, preprocess(part.batch.images_BCHW.to(device)))
    return table.tensors()


def knn_accuracy(
    bank_MD: Tensor, bank_labels_M: Tensor, queries_ND: Tensor, labels_N: Tensor, k: int, temperature: float
) -> float:
    """Share of queries that a vote of the k nearest bank samples by cosine similarity s classifies correctly.

    The vote of a neighbour has the weight exp(s / temperature). Source: Wu et al. 2018, section 3.4 (temperature .07).
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
        weights_Nk = ((similarity_Nk - similarity_Nk[:, :1]) / temperature).exp()  # 1 for the nearest: never all zero
        votes_NC.scatter_add_(1, bank_labels_M[nearest_Nk], weights_Nk)
        answers.append(votes_NC.argmax(dim=1))
    return torch.cat(answers)
