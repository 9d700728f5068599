"""Clusters: Sinkhorn's balance against plain loops in float64, what learns by its loss, what is balanced together."""

import copy

import numpy as np
import pytest
import torch
from small_models import assemble, images, sampled, shaken

from mim.targets.clusters import balance

KEYS = {"clusters": 5, "decay": 0.5, "decay_end": 0.5}


def model_of(**keys):
    model = assemble("random", "vit", "drop", "transformer", "clusters", "cross_entropy", target_keys=KEYS | keys)
    shaken(model.encoder)
    model.target.start(model.encoder)
    return model.train()


def sinkhorn(scores_BKhw, positional, iterations):
    """Each cluster gets an equal share of the tokens, then each token gives 1 in all; by loops over sums, not logs."""
    shares = np.exp(scores_BKhw)
    b, k, h, w = shares.shape
    for _ in range(iterations):
        for cluster in range(k):
            if positional:
                for row, column in np.ndindex(h, w):
                    shares[:, cluster, row, column] /= shares[:, cluster, row, column].sum()
            else:
                shares[:, cluster] /= shares[:, cluster].sum()
        for sample, row, column in np.ndindex(b, h, w):
            shares[sample, :, row, column] /= shares[sample, :, row, column].sum()
    return shares


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
def test_balanced_shares_equal_sinkhorn_by_loops(positional, iterations):
    scores = 4 * torch.randn(6, 5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actual = balance(scores, (0,) if positional else (0, 2, 3), iterations, "device")
    np.testing.assert_allclose(actual.numpy(), sinkhorn(scores.numpy(), positional, iterations), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(actual.sum(dim=1), torch.ones(6, 2, 3, dtype=torch.float64))


def test_many_iterations_give_each_cluster_its_share_of_the_images_at_each_position():
    scores = torch.randn(8, 4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = balance(scores, (0,), 200, "device")
    torch.testing.assert_close(shares.sum(dim=0), torch.full((4, 2, 3), 2.0, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("positional", [True, False])
def test_target_and_its_own_loss_equal_numpy(positional):
    keys = {"positional": positional, "iterations": 2, "balance_temperature": 0.1, "temperature": 0.3, "norm": "layer"}
    model, img = model_of(**keys).double(), images(4, dtype=torch.float64)
    target = model.target
    shares, loss, _ = target.learn(img)
    with torch.no_grad():
        tokens = copy.deepcopy(target.network)(img).tokens_BND.numpy()
    tokens = (tokens - tokens.mean(2, keepdims=True)) / np.sqrt(tokens.var(2, keepdims=True) + 1e-5)
    tokens = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    weight, bias = target.scores.weight.detach().numpy()[:, :, 0, 0], target.scores.bias.detach().numpy()
    scores = (tokens @ weight.T + bias).transpose(0, 2, 1).reshape(4, 5, 4, 8)
    expected = sinkhorn(scores / 0.1, positional, 2)
    np.testing.assert_allclose(shares.numpy(), expected, rtol=1e-6, atol=1e-9)
    alone = np.exp(scores / 0.3) / np.exp(scores / 0.3).sum(axis=1, keepdims=True)
    assert loss.item() == pytest.approx(-(expected * np.log(alone)).sum(axis=1).mean(), rel=1e-6)
    np.testing.assert_allclose(model.eval().target(img).detach().numpy(), alone, rtol=1e-6, atol=1e-9)
    assert target.learn(img)[1] is None


def test_loss_of_the_clusters_reaches_the_layer_of_scores_alone():
    model, img = model_of(), images(4)
    shares, loss, _ = model.target.learn(img)
    assert not shares.requires_grad
    loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"target.scores.weight", "target.scores.bias"}
    assert model.target.scores.weight.grad.any()


def test_loss_of_the_student_does_not_reach_the_layer_of_scores():
    """The sum of both losses has the gradients of each."""
    model, img = model_of(), images(4)
    mask = sampled(model, img)
    model(img, mask).loss.backward()
    both = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.target.learn(img)[1].backward()
    for name in ("target.scores.weight", "target.scores.bias"):
        assert torch.equal(model.get_parameter(name).grad, both[name])
    output = model(img, mask)
    own = model.target.learn(img)[1]
    student = output.loss - own
    assert output.metrics["target_loss"].item() == pytest.approx(own.item(), rel=1e-6)
    expected = model.loss(model.head(model.encode(img, mask)), model.target.learn(img)[0], mask)
    assert student.item() == pytest.approx(expected.item(), rel=1e-5)


def test_clusters_are_balanced_within_a_micro_batch_by_default():
    """So that the rows of another micro-batch, on this device or another one, change nothing."""
    model, img = model_of(), images(8)
    first, *_ = model.target.learn(img[:4])
    again, *_ = model.target.learn(img[:4])
    both, *_ = model.target.learn(img)
    assert torch.equal(first, again)
    assert not torch.allclose(first, both[:4])


def test_shares_of_large_scores_stay_finite():
    scores = torch.tensor([[4e3, -4e3, 0.0], [4e3, 4e3, -4e3]])[:, :, None, None]
    shares = balance(scores, (0,), 3, "device")
    assert shares.isfinite().all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 1, 1))


def test_layer_of_scores_is_saved_and_trained_and_the_network_only_saved():
    model = model_of()
    names = {name for name in model.state_dict() if name.startswith("target.")}
    assert {"target.scores.weight", "target.scores.bias"} <= names
    assert any(name.startswith("target.network.") for name in names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("target.")}
    assert trained == {"target.scores.weight", "target.scores.bias"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clusters": 1}, "TARGET.clusters is 1"),
        ({"iterations": 0}, "TARGET.iterations is 0"),
        ({"temperature": 0.0}, "TARGET.temperature is 0"),
        ({"balance_temperature": -1.0}, "TARGET.balance_temperature is -1"),
    ],
)
def test_values_that_mean_nothing_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        model_of(**keys)
