"""Nearest images, and how well they agree in class, against loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from small_models import generator

from mim.evaluation.retrieval import neighbours, retrieval_scores


def features(count, seed=0, width=8):
    return torch.randn(count, width, generator=generator(seed)) + 1


@pytest.mark.parametrize("own", [False, True])
def test_neighbours_are_those_of_scikit_learns_cosine_similarity(own):
    bank = features(300)
    queries = bank if own else features(270, seed=1)
    found = neighbours(bank, queries, 7, own=own, faiss=False)
    similarity = cosine_similarity(queries.double().numpy(), bank.double().numpy())
    if own:
        np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1)[:, :7]
    assert np.array_equal(found.rows_Nk.numpy(), expected)
    np.testing.assert_allclose(found.similarity_Nk, np.take_along_axis(similarity, expected, axis=1), atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_neighbours_by_faiss_are_the_same(own):
    pytest.importorskip("faiss")
    bank = features(2000, width=16)
    bank[1000:1020] = bank[500]  # as many equal images
    queries = bank if own else torch.cat([bank[495:505], features(290, seed=1, width=16)])
    one, two = (neighbours(bank, queries, 10, own=own, faiss=faiss) for faiss in (False, True))
    assert torch.equal(one.rows_Nk, two.rows_Nk)
    assert torch.equal(one.similarity_Nk, two.similarity_Nk)
    equal = one.rows_Nk[500 if own else 5]  # of equal images the first
    assert equal.tolist() == ([*range(1000, 1010)] if own else [500, *range(1000, 1009)])


def test_neighbours_are_all_images_where_these_are_fewer_and_lengths_do_not_matter():
    bank = torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    found = neighbours(bank, torch.tensor([[0.0, 9.0]]), 10, faiss=False)
    assert found.rows_Nk.tolist() == [[1, 2, 0]]
    assert found.similarity_Nk[0].tolist() == pytest.approx([1, 0.5**0.5, 0])
    assert neighbours(bank, bank, 10, own=True, faiss=False).rows_Nk.tolist() == [[2, 1], [2, 0], [0, 1]]
    assert neighbours(bank[:1], bank[:1], 10, own=True, faiss=False).rows_Nk.shape == (1, 0)


def scores_by_hand(right, relevant, ks):
    """Over queries, in plain Python."""
    precisions, recalls = [], {k: [] for k in ks}
    for row, count in zip(right, relevant, strict=True):
        if not count:
            continue
        hits, total = 0, 0.0
        for place, hit in enumerate(row, 1):
            hits += hit
            total += hits / place if hit else 0
        precisions.append(total / min(count, len(row)))
        for k in ks:
            recalls[k].append(any(row[:k]))
    return np.mean(precisions), {k: np.mean(values) for k, values in recalls.items()}


@pytest.mark.parametrize("own", [False, True])
def test_retrieval_scores_equal_a_loop_over_queries(own):
    bank_classes = torch.randint(12, (60,), generator=generator(0)) - 1  # some without a class, some classes rare
    classes = bank_classes if own else torch.randint(15, (50,), generator=generator(1)) - 1
    bank = features(60)
    found = neighbours(bank, bank if own else features(50, seed=1), 6, own=own, faiss=False)
    scores = retrieval_scores(bank_classes[found.rows_Nk], classes, bank_classes, [1, 3, 6], own=own)
    right, relevant = [], []
    for query, label in enumerate(classes.tolist()):
        right.append([label >= 0 and bank_classes[row] == label for row in found.rows_Nk[query].tolist()])
        others = [each for row, each in enumerate(bank_classes.tolist()) if not (own and row == query)]
        relevant.append(others.count(label) if label >= 0 else 0)
    precision, recall = scores_by_hand(right, relevant, [1, 3, 6])
    assert scores.mean_precision == pytest.approx(precision)
    assert scores.recall == pytest.approx(recall)
    assert scores.queries == sum(count > 0 for count in relevant) < len(classes)


def test_mean_precision_over_all_images_is_scikit_learns_average_precision():
    bank, queries = features(40), features(25, seed=1)
    bank_classes, classes = (torch.arange(count) % 4 for count in (40, 25))
    found = neighbours(bank, queries, 40, faiss=False)
    scores = retrieval_scores(bank_classes[found.rows_Nk], classes, bank_classes, [1])
    similarity = cosine_similarity(queries.double(), bank.double())
    expected = [
        average_precision_score((bank_classes == label).numpy(), row)
        for label, row in zip(classes, similarity, strict=True)
    ]
    assert scores.mean_precision == pytest.approx(np.mean(expected))


def test_retrieval_scores_without_a_query_that_counts_are_nan():
    scores = retrieval_scores(torch.tensor([[0, 1]]), torch.tensor([5]), torch.tensor([0, 1]), [1, 2])
    assert scores.queries == 0
    assert np.isnan([scores.mean_precision, *scores.recall.values()]).all()
