"""Criteria: the values of PyTorch and scikit-learn, whatever is unknown and however a batch is split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from mim.criteria import Criterion
from mim.structures import LabelSpec

NAMES = tuple("abcde")
KINDS = ("class", "classes", "number", "mask")
PAIRS = [(name, kind) for name, part in sorted(Criterion.members().items()) for kind in part.kinds]


def spec(kind: str, outputs: int = 5) -> LabelSpec:
    return LabelSpec(kind, NAMES[:outputs])


def made(name: str, kind: str, labels: np.ndarray | None = None, **keys) -> Criterion:
    return Criterion.named(name)(spec(kind), labels, **keys)


def sample(criterion: Criterion, samples: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores that want a gradient, and labels of the criterion's kind."""
    torch.manual_seed(seed)
    kind, size = criterion.spec.kind, (4, 6)
    scores = torch.randn(samples, criterion.outputs, *(size if kind == "mask" else ())).requires_grad_()
    labels = {
        "class": lambda: torch.randint(5, (samples,)),
        "mask": lambda: torch.randint(5, (samples, *size)),
        "classes": lambda: torch.randint(2, (samples, 5)).float(),
        "number": lambda: torch.randn(samples, 5) * 100,
    }[kind]()
    return scores, labels


def unknown(labels: Tensor) -> float:
    return float("nan") if labels.is_floating_point() else -1


# ---------------------------------------------------------------- all


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_unknown_labels_change_neither_loss_nor_gradient(name, kind):
    criterion = made(name, kind)
    scores, labels = sample(criterion)
    known = torch.tensor([True, False, True, True, False, True])
    criterion(scores[known], labels[known]).backward()
    gradient, scores.grad = scores.grad, None
    expected = criterion(scores[known], labels[known])
    labels[~known] = unknown(labels)
    loss = criterion(scores, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(scores.grad, gradient)
    assert (scores.grad[~known] == 0).all()


@pytest.mark.parametrize("keys", [{}, {"smoothing": 0.1}, {"class_weights": (1.0, 2.0, 1.0, 1.0, 1.0)}])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_batch_without_a_known_label_costs_0_with_a_gradient_of_0(name, kind, keys):
    criterion = made(name, kind, **(keys if name == "cross_entropy" else {}))
    scores, labels = sample(criterion)
    loss = criterion(scores, torch.full_like(labels, unknown(labels)))
    loss.backward()
    assert loss.item() == 0
    assert (scores.grad == 0).all()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_loss_is_the_mean_of_its_samples_however_much_of_each_is_known(name, kind):
    criterion = made(name, kind)
    scores, labels = sample(criterion)
    if kind != "class":
        labels[1].view(-1)[:3] = unknown(labels)
        labels[2].view(-1)[1] = unknown(labels)
    each = torch.stack([criterion(scores[row : row + 1], labels[row : row + 1]) for row in range(6)])
    torch.testing.assert_close(criterion(scores, labels), each.mean())
    losses_B, known_B = criterion.losses(scores, labels, plain=True)
    torch.testing.assert_close(losses_B, each)
    assert known_B.tolist() == [True] * 6


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_half_precision_scores_are_compared_in_fp32(name, kind):
    criterion = made(name, kind)
    scores, labels = sample(criterion)
    half = scores.detach().half()
    loss = criterion(half, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, criterion(half.float(), labels))
    assert criterion(scores.double(), labels).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(Criterion.members()))
def test_another_kind_of_labels_is_refused_with_the_criteria_that_fit(name, kind):
    if (name, kind) in PAIRS:
        assert made(name, kind).spec.kind == kind
        return
    fitting = {"class": "cross_entropy or ordinal", "classes": "binary", "mask": "cross_entropy"}
    fitting["number"] = "huber or l1 or mse"
    with pytest.raises(ValueError, match=f"CRITERION.name {name} is for .*kind {kind} .*: use .*{fitting[kind]}"):
        made(name, kind)


@pytest.mark.parametrize("keys", [{"class_weights": "balanced"}, {"positive_weights": "balanced"}, {}])
def test_what_comes_from_training_labels_is_in_the_checkpoint(keys):
    name, kind = {"class_weights": ("cross_entropy", "class"), "positive_weights": ("binary", "classes")}.get(
        next(iter(keys), ""), ("mse", "number")
    )
    scores, labels = sample(made(name, kind))
    criterion = made(name, kind, labels.numpy(), **keys)
    loaded = made(name, kind, None, **keys)
    assert not torch.equal(loaded(scores, labels), criterion(scores, labels))
    loaded.load_state_dict(criterion.state_dict())
    assert torch.equal(loaded(scores, labels), criterion(scores, labels))
    assert torch.equal(loaded.answers(scores), criterion.answers(scores))


@pytest.mark.parametrize("name", ["cross_entropy", "binary"])
def test_without_weights_a_criterion_adds_nothing_to_a_checkpoint(name):
    assert made(name, "class" if name == "cross_entropy" else "classes").state_dict() == {}


# ---------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 7, 64])
def test_cross_entropy_is_that_of_torch_to_the_bit(samples, dtype, smoothing):
    criterion = made("cross_entropy", "class", smoothing=smoothing)
    ours, labels = sample(criterion, samples)
    ours = ours.detach().to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss, expected = criterion(ours, labels), F.cross_entropy(theirs.float(), labels, label_smoothing=smoothing)
    (3 * loss).backward()
    (3 * expected).backward()
    assert torch.equal(loss, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_cross_entropy_of_mixed_labels_is_that_of_torch_to_the_bit_and_is_not_smoothed_again():
    scores, _ = sample(made("cross_entropy", "class"))
    mixed_BK = torch.rand(6, 5).softmax(dim=1)
    weights_K = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    smooth = made("cross_entropy", "class", smoothing=0.1)
    weighted = made("cross_entropy", "class", class_weights=tuple(weights_K.tolist()))
    assert torch.equal(smooth(scores, mixed_BK), F.cross_entropy(scores, mixed_BK))
    assert torch.equal(weighted(scores, mixed_BK), F.cross_entropy(scores, mixed_BK, weight=weights_K))
    assert [name for name, part in Criterion.members().items() if part.takes_mixed] == ["cross_entropy"]


def test_cross_entropy_of_masks_of_equally_many_known_pixels_is_that_of_torch():
    criterion = made("cross_entropy", "mask")
    scores, labels = sample(criterion)
    labels[:, 0, 1:3] = -1
    torch.testing.assert_close(criterion(scores, labels), F.cross_entropy(scores, labels, ignore_index=-1))


def test_coarse_scores_are_resized_to_the_mask():
    criterion = made("cross_entropy", "mask")
    scores, _ = sample(criterion)
    labels = torch.randint(5, (6, 8, 18))
    fine = F.interpolate(scores, (8, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(criterion(scores, labels), F.cross_entropy(fine, labels))
    torch.testing.assert_close(criterion.answers(scores, (8, 18)), fine.softmax(dim=1))
    torch.testing.assert_close(criterion.answers(scores), scores.softmax(dim=1))


@pytest.mark.parametrize("kind", ["class", "mask"])
def test_balanced_class_weights_are_those_of_scikit_learn_and_have_the_mean_1(kind):
    generator = np.random.default_rng(0)
    labels = generator.choice(5, (40, 3, 4) if kind == "mask" else 40, p=(0.5, 0.3, 0.1, 0.1, 0.0))
    known, labels[:4] = labels[4:].ravel(), -1
    weights_K = made("cross_entropy", kind, iter(labels) if kind == "mask" else labels, class_weights="balanced")
    expected_K = compute_class_weight("balanced", classes=np.arange(4), y=known)
    np.testing.assert_allclose(weights_K.weights_K.numpy(), [*expected_K, 1.0], rtol=1e-6)
    assert weights_K.weights_K[known].mean().item() == pytest.approx(1.0)


def test_class_weights_multiply_the_losses_of_samples_and_are_no_part_of_plain_losses():
    weights_K = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])
    criterion = made("cross_entropy", "class", class_weights=tuple(weights_K.tolist()))
    scores, labels = sample(criterion, 20)
    each_B = F.cross_entropy(scores, labels, reduction="none")
    torch.testing.assert_close(criterion(scores, labels), (weights_K[labels] * each_B).mean())
    torch.testing.assert_close(criterion.losses(scores, labels, plain=True)[0], each_B)
    smooth = made("cross_entropy", "class", class_weights=tuple(weights_K.tolist()), smoothing=0.2)
    expected = F.cross_entropy(scores, labels, weights_K, reduction="sum", label_smoothing=0.2) / 20
    torch.testing.assert_close(smooth(scores, labels), expected)
    torch.testing.assert_close(smooth.losses(scores, labels, plain=True)[0], each_B)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0, 1.0, -1.0), (0.0,) * 5, ()])
def test_class_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match=r"CRITERION.class_weights is .* 5 numbers, one for each class"):
        made("cross_entropy", "class", class_weights=weights)


def test_bad_smoothing_and_balance_without_labels_are_refused():
    with pytest.raises(ValueError, match=r"CRITERION.smoothing is 1.0"):
        made("cross_entropy", "class", smoothing=1.0)
    with pytest.raises(ValueError, match=r"class_weights is balanced, and no training image has a label"):
        made("cross_entropy", "class", np.array([-1, -1]), class_weights="balanced")


def test_sure_answers_stay_apart():
    scores = torch.tensor([[60.0, 0.0, 0.0, 0.0, 0.0], [61.0, 0.0, 0.0, 0.0, 0.0], [0.0, 200.0, 1.0, 2.0, 3.0]])
    answers = made("cross_entropy", "class").answers(scores)
    assert answers.dtype == torch.float64
    assert len(answers[2].unique()) == 5
    assert answers[0, 1] > answers[1, 1] > 0
    assert answers.sum(dim=1).tolist() == pytest.approx([1.0] * 3)


# ---------------------------------------------------------------- binary


def test_binary_is_the_log_loss_of_scikit_learn():
    criterion = made("binary", "classes")
    scores, labels = sample(criterion, 50)
    share = criterion.answers(scores.detach()).numpy()
    expected = np.mean([log_loss(labels[:, k].numpy(), share[:, k]) for k in range(5)])
    assert criterion(scores, labels).item() == pytest.approx(expected, rel=1e-6)


def test_balanced_positive_weights_make_both_sides_weigh_the_same():
    labels = np.array([[1, 0, 1, 0, 1], [0, 0, 1, 0, 1], [0, 0, 1, 1, np.nan], [0, 1, 1, 0, 0]], dtype=np.float32)
    criterion = made("binary", "classes", labels, positive_weights="balanced")
    assert criterion.positive_weights_K.tolist() == [3.0, 3.0, 1.0, 3.0, 0.5]
    scores, truth = torch.randn(4, 5), torch.from_numpy(labels).nan_to_num(0)
    expected = F.binary_cross_entropy_with_logits(scores, truth, pos_weight=criterion.positive_weights_K)
    torch.testing.assert_close(criterion(scores, truth), expected)
    torch.testing.assert_close(
        criterion.losses(scores, truth, plain=True)[0].mean(), F.binary_cross_entropy_with_logits(scores, truth)
    )


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("name", "loss"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)], ids=["mse", "l1", "huber"]
)
def test_numbers_are_compared_standardised_and_answered_in_their_unit(name, loss):
    generator = np.random.default_rng(0)
    train = (generator.normal(size=(30, 5)) * [1, 10, 1000, 0.01, 0] + [0, 5, 2000, 0, 0.1]).astype(np.float32)
    train[3, 1] = train[4] = np.nan
    criterion = made(name, "number", train)
    mean_K, std_K = np.nanmean(train.astype(float), axis=0), np.nanstd(train.astype(float), axis=0)
    std_K[4] = 1
    labels = torch.from_numpy(train[:3])
    scores = torch.randn(3, 5)
    expected = loss(scores, ((labels.double() - torch.from_numpy(mean_K)) / torch.from_numpy(std_K)).float())
    torch.testing.assert_close(criterion(scores, labels), expected)
    np.testing.assert_allclose(criterion.answers(torch.zeros(1, 5))[0].numpy(), mean_K)
    np.testing.assert_allclose(criterion.answers(torch.ones(1, 5))[0].numpy(), mean_K + std_K)
    right = ((labels.double() - criterion.mean_K) / criterion.std_K).float()
    assert criterion(right, labels).item() == pytest.approx(0, abs=1e-9)


def test_huber_has_its_delta():
    criterion, labels = made("huber", "number", delta=0.5), torch.zeros(1, 5)
    assert criterion(torch.full((1, 5), 2.0), labels).item() == pytest.approx(0.5 * (2 - 0.25))
    with pytest.raises(ValueError, match=r"CRITERION.delta is 0"):
        made("huber", "number", delta=0)


# ---------------------------------------------------------------- ordinal


def test_ordinal_has_one_output_less_and_probabilities_that_sum_to_1():
    criterion = made("ordinal", "class")
    scores, labels = sample(criterion, 100)
    answers_BK = criterion.answers(4 * scores)
    assert criterion.outputs == 4
    assert answers_BK.shape == (100, 5)
    assert answers_BK.sum(dim=1).tolist() == pytest.approx([1.0] * 100)
    likely_B = criterion.answers(scores).gather(1, labels[:, None])[:, 0]
    assert criterion(scores, labels).item() == pytest.approx(-likely_B.log().mean().item(), rel=1e-6)


def test_ordinal_is_the_loss_of_corn():
    """CORN's conditional subsets, written out: threshold k is trained on the samples at or beyond class k."""
    criterion = made("ordinal", "class")
    scores, labels = sample(criterion, 40)
    total = torch.zeros(())
    for k in range(4):
        subset = labels >= k
        share = scores[subset, k].sigmoid()
        total = total + F.binary_cross_entropy(share, (labels[subset] > k).float(), reduction="sum")
    assert criterion(scores, labels).item() == pytest.approx(total.item() / 40, rel=1e-6)


def test_ordinal_refuses_a_single_class():
    with pytest.raises(ValueError, match=r"at least two classes, and the labels have 1"):
        Criterion.named("ordinal")(spec("class", 1))
