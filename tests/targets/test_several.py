"""Several targets at once: the weighted sum of the losses of models that have one target each."""

import pytest
import torch
from small_models import IMAGE, fits, images, members, predicts, small

from mim.encoders import ViT
from mim.heads import Head
from mim.losses import L1, MSE, SmoothL1
from mim.maskers.random import Random
from mim.model import MaskedImageModel
from mim.structures import PatchMask, Prediction, TargetSpec
from mim.targets import HOG, Fourier, Pixels
from mim.targets.several import Several, SeveralLosses, labels_of

WEIGHTS = (1.0, 0.5, 2.0)
LOSSES = (MSE, L1, SmoothL1)
HEADS = [
    (hidden, head)
    for hidden in ("drop", "replace")
    for head in members(Head)
    if fits(hidden, head) and predicts(hidden, head, TargetSpec(1, 8))
]


def parts(encoder):
    """Targets of strides 1, 4 and 8."""
    return [Pixels(IMAGE, encoder), HOG(IMAGE, encoder, cell=4), Fourier(IMAGE, encoder)]


def model_of(encoder, head, target, loss, seed=1):
    torch.manual_seed(seed)
    head = small(Head.named(head), encoder.spec, target.spec)
    return MaskedImageModel(small(Random, IMAGE), encoder, head, target, loss).double()


def entries(map_bchw, factor):
    """Each square of factor x factor entries as one, by a loop: channel by channel, then row by row."""
    b, c, h, w = map_bchw.shape
    packed = map_bchw.new_zeros(b, c * factor**2, h // factor, w // factor)
    for channel in range(c):
        for row in range(factor):
            for column in range(factor):
                number = (channel * factor + row) * factor + column
                packed[:, number] = map_bchw[:, channel, row::factor, column::factor]
    return packed


@pytest.mark.parametrize(("hidden", "head"), HEADS)
def test_several_have_the_weighted_sum_of_the_losses_of_each_alone(hidden, head):
    torch.manual_seed(0)
    encoder = small(ViT, IMAGE, hidden=hidden)
    targets, losses = parts(encoder.spec), [loss() for loss in LOSSES]
    several = Several(targets)
    model = model_of(encoder, head, several, SeveralLosses(several, losses, WEIGHTS)).eval()
    img = images(3, dtype=torch.float64)
    mask = model.sample_mask(img, torch.Generator().manual_seed(0))
    output = model(img, mask)
    expected, start = 0.0, 0
    for target, loss, weight in zip(targets, losses, WEIGHTS, strict=True):
        factor = several.spec.stride // target.spec.stride
        size = target.spec.channels * factor**2
        piece = output.prediction[:, start : start + size]
        # a model with this target alone, and the slice of the prediction that is its own
        alone = loss(Prediction(torch.nn.functional.pixel_shuffle(piece, factor)), target(img), mask)
        torch.testing.assert_close(entries(target(img), factor), several(img)[:, start : start + size], rtol=0, atol=0)
        assert output.metrics[f"loss_{target.name}"].item() == pytest.approx(alone.item(), rel=1e-12)
        expected, start = expected + weight * alone, start + size
    assert start == output.prediction.shape[1]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert list(output.metrics) == ["loss_pixels", "loss_hog", "loss_fourier"]


def test_several_give_each_target_the_gradient_of_its_own_loss():
    """The last layer of a head has outputs of each target alone, so their gradients do not mix there."""
    torch.manual_seed(0)
    encoder = small(ViT, IMAGE, hidden="replace")
    several = Several([HOG(IMAGE, encoder.spec), Fourier(IMAGE, encoder.spec)])  # both of stride 8
    img, grads = images(2, dtype=torch.float64), []
    for weights in ((1.0, 1.0), (1.0, 3.0)):
        model = model_of(encoder, "mlp", several, SeveralLosses(several, [L1(), L1()], weights))
        model(img, model.sample_mask(img, torch.Generator().manual_seed(0))).loss.backward()
        last = [parameter for parameter in model.head.parameters() if len(parameter) == several.spec.channels][-1]
        grads.append(last.grad.clone())
    size = several.sizes[0]
    torch.testing.assert_close(grads[1][:size], grads[0][:size])
    torch.testing.assert_close(grads[1][size:], 3 * grads[0][size:])


def test_several_with_weight_two_have_twice_the_loss():
    torch.manual_seed(0)
    encoder = small(ViT, IMAGE, hidden="replace")
    target, img = Pixels(IMAGE, encoder.spec), images(2, dtype=torch.float64)
    several = Several([target])
    models = [
        model_of(encoder, "pixel_shuffle", target, MSE()),
        model_of(encoder, "pixel_shuffle", several, SeveralLosses(several, [MSE()], [2.0])),
    ]
    mask = models[0].sample_mask(img, torch.Generator().manual_seed(0))
    one, twice = (model(img, mask) for model in models)
    assert twice.loss.item() == pytest.approx(2 * one.loss.item(), rel=1e-12)
    assert twice.metrics["loss_pixels"].item() == pytest.approx(one.loss.item(), rel=1e-12)
    assert one.metrics == {}


def test_several_unpack_what_they_pack():
    several = Several(parts(small(ViT, IMAGE, hidden="replace").spec))
    maps = [
        torch.randn(2, part.spec.channels, 32 // part.spec.stride, 64 // part.spec.stride) for part in several.targets
    ]
    for mine, theirs in zip(several.unpack(several.pack(maps)), maps, strict=True):
        assert torch.equal(mine, theirs)


def test_several_of_one_name_are_numbered():
    assert labels_of(["pixels", "hog", "pixels"]) == ["pixels_0", "hog", "pixels_2"]


def test_several_whose_strides_do_not_divide_are_refused():
    image = type(IMAGE)(3, 48, 48)
    encoder = small(ViT, image, hidden="replace", patch=24).spec
    with pytest.raises(ValueError, match=r"TARGET.name pixels has entries of 3 pixels.* divide"):
        Several([Pixels(image, encoder, stride=3), HOG(image, encoder, cell=8, window=0)])


def test_several_have_the_baseline_of_each_alone():
    """The best constant of a channel is one value, however many entries of it share an entry of the packed map."""
    several = Several(parts(small(ViT, IMAGE, hidden="replace").spec))
    loss = SeveralLosses(several, [each() for each in LOSSES], WEIGHTS)
    img, mask = images(4), PatchMask(torch.ones(4, 4, 8, dtype=torch.bool))
    mean = several(img).mean(dim=(0, 2, 3))
    constant = loss.constant(mean)[None, :, None, None].expand_as(several(img))
    _, terms = loss.with_terms(Prediction(constant), several(img), mask)
    for target, each in zip(several.targets, loss.parts, strict=True):
        alone = target(img).mean(dim=(0, 2, 3))[None, :, None, None].expand_as(target(img))
        assert terms[target.name].item() == pytest.approx(each(Prediction(alone), target(img), mask).item(), rel=1e-6)


def test_several_count_the_cells_that_a_head_predicts_for_each():
    """A head that decodes a share of the hidden cells: each target's loss is over these, on its own grid."""
    torch.manual_seed(0)
    encoder = small(ViT, IMAGE, hidden="drop")
    several = Several(parts(encoder.spec))
    losses = [loss() for loss in LOSSES]
    model = model_of(encoder, "cross_attention", several, SeveralLosses(several, losses, WEIGHTS)).train()
    img = images(3, dtype=torch.float64)
    mask = model.sample_mask(img, torch.Generator().manual_seed(0))
    output, predicted_bhw = model(img, mask), model.head(model.encode(img, mask)).predicted_BHW
    assert 0 < predicted_bhw.sum() < mask.hidden_BHW.sum()
    assert not (predicted_bhw & ~mask.hidden_BHW).any()
    for target, loss, piece in zip(several.targets, losses, several.unpack(output.prediction), strict=True):
        stride = 8 // target.spec.stride
        counted = predicted_bhw.repeat_interleave(stride, dim=1).repeat_interleave(stride, dim=2)
        expected = loss.elementwise(piece, target(img)).mean(dim=1)[counted].mean()
        assert output.metrics[f"loss_{target.name}"].item() == pytest.approx(expected.item(), rel=1e-10)
