import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from small_data import digit
from small_models import (
    CPU,
    IMAGE,
    assemble,
    finetuned_predictor,
    generator,
    images,
    mae,
    probing_predictor,
    sampled,
    simmim,
)
from torch.utils.flop_counter import FlopCounterMode

from mim.cost.model_summary import summarise_model
from mim.data.batch import Batch
from mim.data.preprocess import Preprocess
from mim.encoders import Swin, ViT
from mim.evaluation.knn import features_of, knn_accuracy, knn_answers
from mim.evaluation.reading import EvaluationBatch
from mim.ops.attention import choose_attention
from mim.structures import ImageSpec

# ---------------------------------------------------------------- nearest neighbours


def reference(bank, bank_labels, queries, k, temperature):
    """Scikit-learn's vote, each neighbour weighing exp((s - 1) / T) at a cosine distance of 1 - s."""
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance - 1) / temperature)
    )
    return classifier.fit(bank.double().numpy(), bank_labels.numpy()).predict(queries.double().numpy())


def check_against_reference(bank, bank_labels, queries, labels, k, temperature):
    predicted = torch.from_numpy(reference(bank, bank_labels, queries, k, temperature))
    assert torch.equal(knn_answers(bank, bank_labels, queries, k, temperature), predicted)
    accuracy = knn_accuracy(bank, bank_labels, queries, labels, k, temperature)
    assert accuracy == pytest.approx((predicted == labels).double().mean().item(), abs=1e-12)
    return accuracy


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_accuracy_equals_scikit_learn_on_random_features(k, temperature):
    source = generator(0)
    labels = torch.randint(7, (900,), generator=source)
    features = torch.randn(900, 16, generator=source) + torch.randn(7, 16, generator=source)[labels] * 0.7
    features *= torch.rand(900, 1, generator=source) * 10 + 0.1  # lengths must not matter
    accuracy = check_against_reference(features[:300], labels[:300], features[300:], labels[300:], k, temperature)
    assert 0.3 < accuracy < 1


def test_knn_accuracy_equals_scikit_learn_on_digits():
    digits = load_digits()
    features, labels = torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target).long()
    accuracy = check_against_reference(features[:1200], labels[:1200], features[1200:], labels[1200:], 20, 0.07)
    assert accuracy > 0.9


def test_knn_accuracy_weighs_near_neighbours_more():
    """One near neighbour of class 1 against two far ones of class 0."""
    bank = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    labels, query, truth = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    assert knn_accuracy(bank, labels, query, truth, k=3, temperature=0.07) == 1.0
    assert knn_accuracy(bank, labels, query, truth, k=3, temperature=100.0) == 0.0


def test_knn_accuracy_takes_a_bank_smaller_than_k_and_labels_the_bank_lacks():
    bank, queries = torch.eye(2), torch.eye(2)
    assert knn_accuracy(bank, torch.tensor([0, 1]), queries, torch.tensor([0, 5]), k=20, temperature=0.07) == 0.5


def test_knn_accuracy_is_computed_in_fp32_under_autocast():
    source = generator(1)
    features, labels = torch.randn(400, 32, generator=source), torch.randint(4, (400,), generator=source)
    expected = torch.from_numpy(reference(features[:200], labels[:200], features[200:], 5, 0.07))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert knn_accuracy(features[:200], labels[:200], features[200:], expected, 5, 0.07) == 1.0


def test_knn_answers_are_one_for_each_query_in_their_order_however_many_there_are():
    source = generator(2)
    bank, labels = torch.randn(50, 8, generator=source), torch.randint(3, (50,), generator=source)
    queries = torch.randn(1030, 8, generator=source)  # more than go through at once, and no multiple of that
    answers = knn_answers(bank, labels, queries, 5, 0.07)
    assert answers.dtype == torch.long
    assert torch.equal(answers, torch.cat([knn_answers(bank, labels, query[None], 5, 0.07) for query in queries]))


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_knn_answers_hold_at_temperatures_whose_plain_weights_would_overflow(temperature):
    """exp(1 / .001) is infinite; one near neighbour still beats many a little farther off."""
    bank = torch.cat([torch.tensor([[1.0, 0.02]]), torch.tensor([[1.0, 0.5]]).repeat(9, 1)])
    labels, query = torch.tensor([1] + [0] * 9), torch.tensor([[1.0, 0.0]])
    assert knn_answers(bank, labels, query, 10, temperature).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_knn_answers_hold_at_temperatures_whose_weights_would_vanish(temperature):
    """Far neighbours all weigh exp(-hundreds) against one another; the nearest of them still wins."""
    bank = torch.tensor([[-1.0, 0.1], [-1.0, 0.2], [-1.0, 0.9]])
    answers = knn_answers(bank, torch.tensor([0, 0, 2]), torch.tensor([[1.0, 0.0]]), 3, temperature)
    assert answers.tolist() == [2]


# ---------------------------------------------------------------- features


def stored_digits():
    """Five digits of 32 x 64 in three equal channels."""
    stored = [np.asarray(digit(number).resize((64, 32))) for number in range(5)]
    return torch.from_numpy(np.stack(stored))[:, None].repeat(1, 3, 1, 1)


@pytest.mark.parametrize("encoder_class", [ViT, Swin])
@pytest.mark.parametrize("pool", ["mean", "class", "both"])
@torch.no_grad()
def test_features_of_are_pooled_as_asked_in_the_order_shown(encoder_class, pool):
    torch.manual_seed(0)
    sizes = (
        {"depth": 2, "heads": 2, "patch": 8}
        if encoder_class is ViT
        else {"depths": (1, 1), "heads": (1, 2), "window": 4}
    )
    encoder = encoder_class(IMAGE, hidden="none", width=16, **sizes).eval()
    stored, labels = stored_digits(), torch.tensor([3, 1, -1, 0, 2])
    parts = [
        EvaluationBatch(Batch(stored[part], labels[part], tuple(range(5))[part]), rows)
        for part, rows in ((slice(0, 2), [7, 2]), (slice(2, 5), [9, 0, 4]))
    ]
    preprocess = Preprocess((0.5,) * 3, (2.0,) * 3)
    if encoder_class is Swin and pool != "mean":
        with pytest.raises(ValueError, match=rf"pool {pool}: this encoder has no class token; use mean"):
            features_of(encoder, pool, preprocess, parts, CPU)
        return
    features, labels_B, rows = features_of(encoder, pool, preprocess, parts, CPU)
    tokens = encoder.backbone.forward_features((stored / 255 - 0.5) / 2)
    if encoder_class is Swin:
        expected = tokens.mean(dim=(1, 2))
    else:
        mean, first = tokens[:, 1:].mean(dim=1), tokens[:, 0]  # the class token is no part of the mean
        expected = {"mean": mean, "class": first, "both": torch.cat([mean, first], dim=1)}[pool]
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert torch.equal(labels_B, labels)
    assert rows.tolist() == [7, 2, 9, 0, 4]


def test_features_of_no_image_are_empty():
    encoder = ViT(IMAGE, hidden="none", patch=8, width=16, depth=1, heads=2)
    nothing = features_of(encoder, "both", Preprocess((0.5,) * 3, (2.0,) * 3), [], CPU)
    assert [tuple(part.shape) for part in nothing] == [(0, 32), (0,), (0,)]
    assert nothing[1].dtype == nothing[2].dtype == torch.long


# ---------------------------------------------------------------- operations


def on_meta(build, image, **keys):
    with torch.device("meta"):
        model = build(image, **keys)
    return summarise_model(model, image).flops


def test_dissect_flops_equal_a_count_by_hand():
    image = ImageSpec(3, 16, 24)
    tokens, width, inner, pixels, hidden = 6, 8, 32, 3 * 8 * 8, 5

    def replace_and_mlp(image):
        return assemble(
            *("random", "vit", "replace", "mlp"),
            image=image,
            encoder_keys={"patch": 8, "width": width, "depth": 1, "heads": 2, "class_token": False},
            head_keys={"width": hidden, "depth": 1},
        )

    embed = tokens * pixels * width
    linear = tokens * (width * 3 * width + width * width + 2 * width * inner)
    attention = 2 * tokens * tokens * width
    head = tokens * (width * hidden + hidden * pixels)
    # a multiply-add is two; backward needs a gradient of the input and of the weights, the embedding only the latter
    expected = 2 * (2 * embed + 3 * (linear + attention + head))
    assert on_meta(replace_and_mlp, image) == expected


@pytest.mark.parametrize("build", [mae, simmim])
def test_dissect_flops_equal_pytorchs_count_of_the_real_model(build):
    model = build()
    choose_attention(model, CPU)
    img = images(1)
    with FlopCounterMode(display=False) as counter:
        model(img, sampled(model, img)).loss.backward()
    assert on_meta(build, IMAGE) == counter.get_total_flops() > 0


def test_dissect_flops_fall_when_more_is_dropped():
    flops = [on_meta(mae, IMAGE, masker_keys={"ratio": ratio}) for ratio in (0.25, 0.5, 0.75)]
    assert flops == sorted(flops, reverse=True)
    assert flops[0] > flops[-1]


def classifier_flops(build, **keys):
    """Of a small ViT of two blocks with a classifier of 7 classes on it, one token for each 8 x 8 pixels of 16 x 24."""
    image = ImageSpec(3, 16, 24)
    with torch.device("meta"):
        encoder = ViT(image, hidden="none", patch=8, width=8, depth=2, heads=2, class_token=False)
        model = build(encoder, **keys)
    return summarise_model(model, image).flops


def fine_tuning(tune_blocks):
    return lambda encoder: finetuned_predictor(encoder, 7, tune_blocks)


def test_dissect_flops_of_a_classifier_equal_a_count_by_hand():
    """Frozen parts have no backward pass; what is trained begins with a norm, so all its products have a whole one."""
    tokens, width, inner, pixels, classes = 6, 8, 32, 3 * 8 * 8, 7
    embed = tokens * pixels * width
    qkv, proj = tokens * width * 3 * width, tokens * width * width
    attention, mlp = 2 * tokens * tokens * width, 2 * tokens * width * inner
    block, head = qkv + proj + attention + mlp, width * classes
    forward = 2 * (embed + 2 * block + head)
    assert classifier_flops(fine_tuning("all")) == forward + 2 * (embed + 2 * (2 * block) + 2 * head)
    assert classifier_flops(fine_tuning(1.0)) == forward + 2 * (2 * block + 2 * head)
    assert classifier_flops(fine_tuning(0.5)) == forward + 2 * (2 * mlp + 2 * head)
    for layers in (1, 3):
        flops = classifier_flops(lambda encoder, layers=layers: probing_predictor(encoder, 7, range(layers), "mean"))
        assert flops == 2 * (embed + 2 * block + layers * head) + 2 * layers * head
