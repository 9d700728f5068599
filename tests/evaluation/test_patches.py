"""Patches of a dense evaluation against loops over pixels and patches, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from small_models import CPU, IMAGE, generator, images, small

from mim.data.preprocess import Preprocess
from mim.encoders import Swin, ViT
from mim.evaluation.patch_classifiers import (
    Logistic,
    LogisticPatches,
    Nearest,
    NearestPatches,
    best_setting,
    count_regions,
    predicted_masks,
)
from mim.evaluation.patch_features import (
    PatchBank,
    PatchEncoder,
    PatchMaps,
    collect,
    mean_iou,
    patch_labels,
    region_counts,
)

CLASSES = 3


def masks(count=4, height=8, width=12, seed=0):
    """Blobs of three classes with pixels of none."""
    noise = torch.rand(count, 1, height // 2, width // 2, generator=generator(seed))
    wide = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[:, 0]
    return (wide * (CLASSES + 1)).long().clamp(max=CLASSES) - 1


def maps(labels_BHW, seed=1):
    """Features of patches of 4 px that depend on their labels, with noise."""
    count, height, width = labels_BHW.shape
    mean = torch.randn(CLASSES + 1, 6, generator=generator(seed))
    label = patch_labels(labels_BHW, (height // 4, width // 4), CLASSES)
    noise = torch.randn(*label.shape, 6, generator=generator(seed + 1))
    return PatchMaps(mean[label] + 0.8 * noise, labels_BHW, list(range(count)))


def test_patch_labels_are_the_majority_of_pixels_as_a_loop_finds_it():
    labels = masks(6)
    found = patch_labels(labels, (2, 3), CLASSES)
    for image in range(6):
        for row in range(2):
            for column in range(3):
                pixels = labels[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().tolist()
                order = [0, 1, 2, -1]  # the first of those that have as many pixels
                assert found[image, row, column] == max(order, key=lambda label: pixels.count(label))
    assert set(found.unique().tolist()) == {-1, 0, 1, 2}


def test_patch_labels_of_equal_counts_are_the_lower_class_and_no_class_needs_more():
    assert patch_labels(torch.tensor([[[2, 2, 1, 1], [-1, -1, 0, 0]]]), (1, 2), 3).tolist() == [[[2, 0]]]
    assert patch_labels(torch.tensor([[[2, -1, 1, 1], [-1, -1, -1, -1]]]), (1, 2), 3).tolist() == [[[-1, 1]]]


def test_collect_draws_as_many_labelled_patches_of_each_image_whatever_the_batches():
    labels = masks(6)
    whole = maps(labels)
    bank = collect([whole], CLASSES, 2, 0, 6, CPU)
    label = patch_labels(labels, (2, 3), CLASSES)
    for image in range(6):
        assert (bank.rows_M == image).sum() == min(2, (label[image] >= 0).sum())
    for features, of, row in zip(bank.features_MD, bank.labels_M, bank.rows_M, strict=True):
        places = (whole.features_BhwD[row] == features).all(dim=2).nonzero()
        assert len(places) == 1
        assert label[row][tuple(places[0])] == of >= 0
    singly = [PatchMaps(whole.features_BhwD[[row]], labels[[row]], [row]) for row in (3, 0, 5, 1, 4, 2)]
    other = collect(singly, CLASSES, 2, 0, 6, CPU)
    order = other.rows_M.argsort(stable=True)
    assert torch.equal(other.features_MD[order], bank.features_MD)
    assert not torch.equal(collect([whole], CLASSES, 2, 1, 6, CPU).features_MD, bank.features_MD)
    assert len(collect([whole], CLASSES, 0, 0, 6, CPU).labels_M) == (label >= 0).sum()
    assert collect([], CLASSES, 2, 0, 6, CPU).features_MD.shape == (0, 6)  # of a rank without images


def test_bank_leaves_images_out_or_takes_them_alone():
    bank = PatchBank(torch.arange(5)[:, None].float(), torch.arange(5), torch.tensor([0, 0, 1, 2, 2]))
    assert bank.of_images([2, 0]).labels_M.tolist() == [0, 1, 3, 4]
    assert bank.of_images([2, 0], inside=False).labels_M.tolist() == [2]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_nearest_patches_equal_scikit_learn_on_standardised_features(distance):
    bank = collect([maps(masks(40))], CLASSES, 0, 0, 6, CPU)
    queries = maps(masks(30, seed=7)).features_BhwD.flatten(0, 2)
    found = NearestPatches(bank, [Nearest(k, distance) for k in (1, 5, 11)])(queries)
    scale = StandardScaler().fit(bank.features_MD.double().numpy())
    metric = {"cosine": "cosine", "l2": "euclidean"}[distance]
    for k, answer_N in zip((1, 5, 11), found, strict=True):
        theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute")
        theirs.fit(scale.transform(bank.features_MD.double().numpy()), bank.labels_M.numpy())
        expected = theirs.predict(scale.transform(queries.double().numpy()))
        assert np.array_equal(answer_N.numpy(), expected)
        assert len(np.unique(expected)) == CLASSES


def test_nearest_patches_take_a_bank_smaller_than_k_and_a_channel_that_never_changes():
    bank = PatchBank(torch.tensor([[0.0, 7.0], [1.0, 7.0], [1.1, 7.0]]), torch.tensor([2, 1, 1]), torch.zeros(3).long())
    answers = NearestPatches(bank, [Nearest(30, "l2"), Nearest(1, "l2")])(torch.tensor([[0.1, 9.0]]))
    assert answers.tolist() == [[1], [2]]


def test_logistic_patches_equal_scikit_learn_on_standardised_features():
    bank = collect([maps(masks(40))], CLASSES, 0, 0, 6, CPU)
    queries = maps(masks(30, seed=7)).features_BhwD.flatten(0, 2)
    found = LogisticPatches(bank, [Logistic(0.01), Logistic(10.0)])(queries)
    scale = StandardScaler().fit(bank.features_MD.numpy())
    for c, answer_N in zip((0.01, 10.0), found, strict=True):
        theirs = LogisticRegression(C=c, max_iter=1000).fit(scale.transform(bank.features_MD.numpy()), bank.labels_M)
        assert (answer_N.numpy() == theirs.predict(scale.transform(queries.numpy()))).mean() > 0.995
    assert not torch.equal(found[0], found[1])


def test_miou_equals_scikit_learn_and_a_confusion_by_hand():
    labels, predicted = masks(5), masks(5, seed=3).clamp(min=0)
    counts_K3 = region_counts(predicted, labels, CLASSES)
    known = labels >= 0
    confusion = np.zeros((CLASSES, CLASSES))
    for truth, answer in zip(labels[known].tolist(), predicted[known].tolist(), strict=True):
        confusion[truth, answer] += 1
    assert counts_K3.tolist() == np.stack([np.diag(confusion), confusion.sum(0), confusion.sum(1)], axis=1).tolist()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    assert mean_iou(counts_K3) == pytest.approx((np.diag(confusion) / union).mean())
    assert mean_iou(counts_K3) == pytest.approx(jaccard_score(labels[known], predicted[known], average="macro"))
    assert 0.1 < mean_iou(counts_K3) < 0.9


def test_a_class_that_is_neither_predicted_nor_true_has_no_iou():
    zeros = torch.zeros(1, 2, 2, dtype=torch.long)
    assert mean_iou(region_counts(zeros, zeros, 3)) == 1
    assert np.isnan(mean_iou(region_counts(zeros, zeros - 1, 3)))


def test_count_regions_counts_pixels_that_have_the_class_of_their_patch():
    bank, part = collect([maps(masks(40))], CLASSES, 0, 0, 6, CPU), maps(masks(30, seed=7))
    nearest, logistic = (
        NearestPatches(bank, [Nearest(1, "l2"), Nearest(9, "cosine")]),
        LogisticPatches(bank, [Logistic(1)]),
    )
    halves = [PatchMaps(part.features_BhwD[half], part.labels_BHW[half], []) for half in (slice(0, 13), slice(13, 30))]
    totals = count_regions([nearest, logistic], halves, CLASSES, CPU)
    for classifier, total_SK3 in zip((nearest, logistic), totals, strict=True):
        answers_SN = classifier(part.features_BhwD.flatten(0, 2))
        for answer_N, total_K3 in zip(answers_SN, total_SK3, strict=True):
            pixels_BHW = torch.from_numpy(np.kron(answer_N.view(30, 2, 3).numpy(), np.ones((1, 4, 4), dtype=int)))
            assert torch.equal(total_K3, region_counts(pixels_BHW, part.labels_BHW, CLASSES))
    assert predicted_masks(nearest, part).shape == (2, 30, 8, 12)


def test_best_setting_is_the_one_of_the_highest_miou_and_never_one_without_pixels():
    good, poor, none = torch.tensor([[9, 10, 10]]), torch.tensor([[1, 10, 10]]), torch.tensor([[0, 0, 0]])
    assert best_setting(torch.stack([none, poor, good, good])) == 2
    assert best_setting(torch.stack([none, none])) == 0


@pytest.mark.parametrize(("encoder_class", "stride"), [(ViT, None), (Swin, None), (Swin, 4)])
@torch.no_grad()
def test_patch_encoder_gives_the_map_of_a_stride(encoder_class, stride):
    torch.manual_seed(0)
    encoder = small(encoder_class, IMAGE, hidden="none").eval()
    mean, std = (0.5,) * 3, (2.0,) * 3
    patches = PatchEncoder.of(encoder, Preprocess(mean, std), CPU, stride)
    stored = images().clamp(0, 1)
    map_BDhw = patches.maps(stored)
    assert patches.stride == (stride or encoder.spec.stride)
    assert torch.equal(map_BDhw, encoder.stage_maps((stored - 0.5) / 2)[patches.stride])
    assert map_BDhw.shape[1:] == (patches.width, 32 // patches.stride, 64 // patches.stride)


def test_patch_encoder_refuses_strides_that_the_encoder_does_not_have():
    encoder = small(Swin, IMAGE, hidden="none").eval()
    with pytest.raises(ValueError, match=r"--stride is 16: the maps of swin have the strides 4, 8"):
        PatchEncoder.of(encoder, Preprocess((0.5,) * 3, (1.0,) * 3), CPU, 16)
