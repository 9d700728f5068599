import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from small_models import CPU, IMAGE, Colours, assemble, generator, images, mae, members, sampled, simmim, small

from mim.losses import L1, MSE, Cosine, CrossEntropy, Huber, Loss, SmoothL1
from mim.maskers.random import Random
from mim.registry import keys_of
from mim.structures import ImageSpec, PatchMask, Prediction, TargetSpec

F64 = torch.float64


def maps(batch=2, dtype=F64):
    """A prediction, a target, and a mask on a coarser grid."""
    mask = Random(IMAGE, cell=8, ratio=0.5).sample(batch, generator(5), CPU)
    return images(batch, seed=1, dtype=dtype), images(batch, seed=2, dtype=dtype), mask


def learnable(name, target):
    """The target as a loss of that name needs it."""
    return target.softmax(dim=1) if name == "cross_entropy" else target


# ---------------------------------------------------------------- the published formulas, on whole models


def mae_patchify(imgs, p):
    """Facebookresearch/mae, models_mae.py, patchify, without its demand for squares."""
    h, w = imgs.shape[2] // p, imgs.shape[3] // p
    x = imgs.reshape(imgs.shape[0], 3, h, p, w, p)
    x = torch.einsum("nchpwq->nhwpqc", x)
    return x.reshape(imgs.shape[0], h * w, p**2 * 3)


def mae_loss(imgs, pred, mask, norm_pix_loss):
    """Facebookresearch/mae, models_mae.py, forward_loss. pred: (N, L, p*p*3); mask: (N, L), 1 is removed."""
    target = mae_patchify(imgs, 8)
    if norm_pix_loss:
        mean = target.mean(dim=-1, keepdim=True)
        var = target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1.0e-6) ** 0.5
    loss = (pred - target) ** 2
    loss = loss.mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("normalize", ["patch", "none"])
def test_loss_of_mae_equals_the_published_formula(normalize):
    model, img = mae(target_keys={"normalize": normalize}).double(), images(4, dtype=F64)
    mask = sampled(model, img)
    output = model(img, mask)
    expected = mae_loss(
        img, mae_patchify(output.prediction, 8), mask.hidden_BHW.flatten(1).to(F64), normalize == "patch"
    )
    assert output.loss.dtype == F64
    assert output.loss.item() == pytest.approx(expected.item(), rel=0, abs=1e-10)
    assert output.loss.item() > 0.5  # noise that nothing can predict


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_loss_of_simmim_equals_the_published_formula(encoder):
    """Microsoft/SimMIM, models/simmim.py, forward."""
    model = assemble("random", encoder, "replace", "pixel_shuffle", loss=L1, loss_keys={"eps": 1e-5}).double()
    x = images(4, dtype=F64)
    mask = sampled(model, x)
    output = model(x, mask)
    x_rec, in_chans = output.prediction, 3
    pixels = mask.hidden_BHW.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1).to(F64)
    loss_recon = (x - x_rec).abs()
    expected = (loss_recon * pixels).sum() / (pixels.sum() + 1e-5) / in_chans
    assert output.loss.item() == pytest.approx(expected.item(), rel=0, abs=1e-10)
    without = (loss_recon * pixels).sum() / pixels.sum() / in_chans
    assert abs(without.item() - expected.item()) > 1e-10  # so the 1e-5 is seen


def test_loss_over_all_cells_of_a_whole_model_is_the_plain_mean():
    model = simmim(loss_keys={"over": "all", "eps": 0.0}).double()
    img = images(dtype=F64)
    output = model(img, sampled(model, img))
    assert output.loss.item() == pytest.approx((output.prediction - img).abs().mean().item(), rel=0, abs=1e-10)


# ---------------------------------------------------------------- every loss


@pytest.mark.parametrize("name", members(Loss))
def test_loss_is_the_mean_error_of_hidden_cells_and_blind_to_visible_ones(name):
    loss = small(Loss.named(name))
    prediction, target, mask = maps()
    prediction.requires_grad_()
    value = loss(Prediction(prediction), target, mask)
    hidden = mask.at(32, 64)[:, None].expand_as(prediction)
    expected = loss.elementwise(prediction, target)[hidden].mean()
    assert value.item() == pytest.approx(expected.item(), rel=0, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert not gradient[~hidden].any()
    assert (gradient[hidden] != 0).float().mean() > 0.99


@pytest.mark.parametrize("name", members(Loss))
def test_loss_over_all_cells_counts_visible_ones_too(name):
    loss = small(Loss.named(name), over="all")
    prediction, target, mask = maps()
    expected = loss.elementwise(prediction, target).mean()
    assert loss(Prediction(prediction), target, mask).item() == pytest.approx(expected.item(), rel=0, abs=1e-12)


@pytest.mark.parametrize("name", members(Loss))
def test_loss_of_a_perfect_prediction_is_zero_and_of_another_positive(name):
    loss = small(Loss.named(name))
    prediction, target, mask = maps()
    target, least = learnable(name, target), 0.0
    if name == "cross_entropy":
        least = torch.distributions.Categorical(target.movedim(1, -1)).entropy()[mask.at(32, 64)].mean().item()
    assert loss(Prediction(loss.constant(target)), target, mask).item() == pytest.approx(least, abs=1e-12)
    assert loss(Prediction(prediction), target, mask).item() > least + 0.1


@pytest.mark.parametrize("name", members(Loss))
def test_loss_counts_only_the_cells_that_a_mask_says_and_samples_alike(name):
    """So two processes with half of the samples each have the loss of one."""
    loss = small(Loss.named(name), eps=0.5)
    prediction, target, mask = maps(batch=4)
    predicted = mask.hidden_BHW & (
        torch.rand(4, 4, 8, generator=generator(8)) < torch.tensor([0.2, 0.4, 0.6, 1.0])[:, None, None]
    )
    assert len(set(predicted.sum(dim=(1, 2)).tolist())) > 1
    mask = replace(mask, predicted_BHW=predicted)
    error = loss.elementwise(prediction, target).mean(dim=1)
    pixels = predicted.repeat_interleave(8, 1).repeat_interleave(8, 2)
    means = [error[sample][pixels[sample]].sum() / (pixels[sample].sum() + 0.5) for sample in range(4)]
    value = loss(Prediction(prediction), target, mask)
    assert value.item() == pytest.approx((sum(means) / 4).item(), rel=0, abs=1e-12)
    halves = [
        loss(Prediction(prediction[rows]), target[rows], mask.samples(rows)) for rows in (slice(0, 2), slice(2, 4))
    ]
    assert (sum(halves) / 2).item() == pytest.approx(value.item(), abs=1e-12)
    everywhere = small(Loss.named(name), over="all")
    assert everywhere(Prediction(prediction), target, mask).item() == pytest.approx(error.mean().item(), abs=1e-12)


def test_loss_of_a_sample_whose_predicted_cells_a_head_left_out_is_zero_and_not_infinite():
    prediction, target, mask = maps()
    one = torch.zeros(2, 4, 8, dtype=torch.bool)
    one[:, 0, 0] = True
    value = MSE()(Prediction(prediction, torch.stack([one[0], ~one[1]])), target, replace(mask, predicted_BHW=one))
    expected = ((prediction - target) ** 2)[0, :, :8, :8].mean() / 2
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", members(Loss))
@pytest.mark.parametrize("over", ["hidden", "all"])
def test_loss_counts_only_the_cells_that_a_head_predicted(name, over):
    loss = small(Loss.named(name), over=over)
    prediction, target, mask = maps()
    predicted = torch.rand(2, 4, 8, generator=generator(8)) < 0.5
    counted = predicted & mask.hidden_BHW if over == "hidden" else predicted
    assert 0 < counted.sum() < mask.hidden_BHW.sum() or over == "all"
    pixels = counted.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(prediction)
    expected = loss.elementwise(prediction, target)[pixels].mean()
    value = loss(Prediction(prediction, predicted), target, mask)
    assert value.item() == pytest.approx(expected.item(), rel=0, abs=1e-12)
    assert value.item() != loss(Prediction(prediction), target, mask).item()


@pytest.mark.parametrize("name", members(Loss))
def test_loss_of_uneven_counts_weighs_every_cell_alike(name):
    loss = small(Loss.named(name))
    prediction, target, _ = maps()
    hidden = torch.zeros(2, 4, 8, dtype=torch.bool)
    hidden[0, 0, 0] = True
    hidden[1, :, :6] = True
    pixels = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(prediction)
    expected = loss.elementwise(prediction, target)[pixels].mean()
    value = loss(Prediction(prediction), target, PatchMask.from_tensor(hidden, 2))
    assert value.item() == pytest.approx(expected.item(), rel=0, abs=1e-12)


@pytest.mark.parametrize("name", members(Loss))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_narrow_types_is_computed_in_fp32(name, dtype):
    loss = small(Loss.named(name))
    prediction, target, mask = maps(dtype=torch.float32)
    prediction, target = prediction.to(dtype), learnable(name, target).to(dtype)
    value = loss(Prediction(prediction), target, mask)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(Prediction(prediction.float()), target.float(), mask))
    mixed = loss(Prediction(prediction), target.float(), mask)  # what autocast gives
    assert torch.equal(mixed, value)
    exact = loss(Prediction(prediction.double()), target.double(), mask)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (MSE(), torch.nn.MSELoss(reduction="none")),
        (L1(), torch.nn.L1Loss(reduction="none")),
        (SmoothL1(), torch.nn.SmoothL1Loss(reduction="none")),
        (SmoothL1(beta=0.3), torch.nn.SmoothL1Loss(reduction="none", beta=0.3)),
        (Huber(delta=0.3), torch.nn.HuberLoss(reduction="none", delta=0.3)),
    ],
)
def test_loss_elementwise_equals_pytorchs(loss, reference):
    prediction, target, _ = maps()
    torch.testing.assert_close(loss.elementwise(prediction, target), reference(prediction, target), rtol=0, atol=1e-15)


def test_smooth_l1_is_squared_below_beta_and_absolute_above():
    loss = SmoothL1(beta=2.0)
    error = torch.tensor([0.0, 1.0, -1.0, 2.0, 5.0], dtype=F64)
    expected = torch.tensor([0.0, 0.25, 0.25, 1.0, 4.0], dtype=F64)
    assert torch.equal(loss.elementwise(error, torch.zeros(5, dtype=F64)), expected)


@pytest.mark.parametrize("beta", [0, -1.0])
def test_smooth_l1_refuses_a_beta_that_is_not_positive(beta):
    with pytest.raises(ValueError, match=rf"LOSS\.beta is {beta}: it must be above 0"):
        SmoothL1(beta=beta)


@pytest.mark.parametrize("delta", [0, -1.0])
def test_huber_refuses_a_delta_that_is_not_positive(delta):
    with pytest.raises(ValueError, match=rf"LOSS\.delta is {delta}: it must be above 0"):
        Huber(delta=delta)


def test_cosine_is_one_minus_the_cosine_of_each_entry_whatever_its_length():
    prediction, target, mask = maps()
    lengths = torch.rand(2, 1, 32, 64, dtype=F64) + 0.5
    expected = (1 - torch.nn.functional.cosine_similarity(prediction, target, dim=1))[mask.at(32, 64)].mean()
    value = Cosine()(Prediction(lengths * prediction), target / lengths, mask)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


def test_cosine_of_a_target_of_one_channel_is_refused_where_a_model_is_built():
    parts = ("random", "vit", "drop", "transformer", "pixels", "cosine")
    with pytest.raises(ValueError, match=r"LOSS\.name cosine .* one channel"):
        assemble(*parts, ImageSpec(1, 32, 64))
    assert assemble(*parts, ImageSpec(2, 32, 64)).target.spec.channels == 2


@pytest.mark.parametrize("temperature", [1.0, 0.12])
def test_cross_entropy_equals_pytorchs_for_logits_over_the_temperature(temperature):
    prediction, target, mask = maps()
    target = (3 * target).softmax(dim=1)
    loss = CrossEntropy(temperature=temperature)
    entries = torch.nn.functional.cross_entropy(prediction / temperature, target, reduction="none")
    torch.testing.assert_close(loss.elementwise(prediction, target).mean(dim=1), entries, rtol=0, atol=1e-12)
    value = loss(Prediction(prediction), target, mask)
    assert value.item() == pytest.approx(entries[mask.at(32, 64)].mean().item(), abs=1e-12)
    torch.testing.assert_close(loss.as_target(loss.constant(target)), target, rtol=0, atol=1e-12)


def test_cross_entropy_of_one_class_is_minus_the_log_of_its_probability():
    loss, logits = CrossEntropy(), torch.tensor([0.0, math.log(3.0)], dtype=F64)[None, :, None, None]
    token = torch.tensor([0.0, 1.0], dtype=F64)[None, :, None, None]
    assert loss.elementwise(logits, token).mean().item() == pytest.approx(-math.log(0.75))
    assert loss.elementwise(loss.constant(token), token).mean().item() == pytest.approx(0, abs=1e-12)


def test_cross_entropy_of_a_target_without_probabilities_is_refused_where_a_model_is_built():
    parts = ("random", "vit", "drop", "transformer")
    for target in ("pixels", "hog"):
        with pytest.raises(
            ValueError, match=r"LOSS\.name cross_entropy compares distributions.* Use LOSS\.name mse or l1"
        ):
            assemble(*parts, target, "cross_entropy")
    with pytest.raises(ValueError, match="two or more classes"):
        CrossEntropy().check(TargetSpec(1, 8, distribution=True))
    assert assemble(*parts, Colours, "cross_entropy").target.spec.distribution


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_cross_entropy_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=rf"LOSS\.temperature is {temperature}: it must be above 0"):
        CrossEntropy(temperature=temperature)


class Scaled(Loss, name="scaled_without_shared_keys"):
    def __init__(self, *, factor: float = 2.0):
        super().__init__()
        self.factor = factor

    def elementwise(self, prediction_BCHW, target_BCHW):
        return self.factor * (prediction_BCHW - target_BCHW).abs()


class OverAll(Scaled, name="over_all_with_its_own_default"):
    def __init__(self, *, over: Literal["hidden", "all"] = "all", offset: float = 0.0):
        super().__init__(over=over, factor=3.0)
        self.offset = offset


def test_loss_of_a_user_has_over_and_eps_although_its_constructor_does_not_take_them():
    assert list(keys_of(Scaled)) == ["factor", "over", "eps"]
    assert keys_of(Scaled)["eps"] == keys_of(MSE)["eps"]
    prediction, target, mask = maps()
    for shared in ({}, {"over": "all"}, {"eps": 5.0}, {"over": "all", "eps": 1.0}):
        scaled, plain = (loss(Prediction(prediction), target, mask) for loss in (Scaled(**shared), L1(**shared)))
        assert scaled.item() == pytest.approx(2 * plain.item(), rel=1e-12)
    with pytest.raises(TypeError, match="fctor"):
        Scaled(fctor=1.0)


def test_loss_of_a_user_may_change_the_default_of_a_shared_key():
    keys = {key: value.default for key, value in keys_of(OverAll).items()}
    assert keys == {"over": "all", "offset": 0.0, "eps": 0.0}
    assert (OverAll().over, OverAll().eps, OverAll().factor) == ("all", 0.0, 3.0)
    assert (OverAll(over="hidden", eps=2.0).over, OverAll(eps=2.0).eps) == ("hidden", 2.0)


def test_loss_eps_is_added_to_the_number_of_cells():
    prediction, target, mask = maps()
    plain, padded = (MSE(eps=eps)(Prediction(prediction), target, mask).item() for eps in (0.0, 10.0))
    cells = mask.at(32, 64).sum().item()
    assert padded == pytest.approx(plain * cells / (cells + 10), rel=1e-12)


def test_loss_that_returns_its_mean_is_named():
    class Mean(MSE):
        def elementwise(self, prediction_BCHW, target_BCHW):
            return super().elementwise(prediction_BCHW, target_BCHW).mean()

    prediction, target, mask = maps()
    with pytest.raises(TypeError, match=r"LOSS\.name mse: elementwise returned \(\), not a loss for each entry"):
        Mean()(Prediction(prediction), target, mask)
