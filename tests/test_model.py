import pytest
import torch
from small_models import IMAGE, assemble, generator, images, mae, sampled, simmim
from torch._dynamo.testing import CompileCounter

from mim.encoders import ViT
from mim.heads.pixel_shuffle import PixelShuffle
from mim.losses import MSE
from mim.maskers.random import Random
from mim.model import MaskedImageModel
from mim.structures import EncoderSpec, PatchMask
from mim.targets import Pixels

MODELS = {"mae": mae, "simmim": simmim}


def pixel_map(hidden_BHW):
    """Cells of 8 px as pixels."""
    return hidden_BHW.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_model_sample_mask_is_reproducible_and_its_maskers_own(make):
    model, img = make(), images(8)
    first, twin, other = (model.sample_mask(img, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.hidden_BHW, twin.hidden_BHW)
    assert not torch.equal(first.hidden_BHW, other.hidden_BHW)
    direct = model.masker.sample(8, generator(1), img.device)
    assert torch.equal(first.hidden_BHW, direct.hidden_BHW)
    assert first.visible == model.masker.visible


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_model_takes_a_grid_made_by_hand(make):
    model, img = make(), images(3)
    mask = sampled(model, img)
    expected, actual = model(img, mask), model(img, mask.hidden_BHW)
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.prediction, expected.prediction)
    assert torch.equal(actual.mask.hidden_BHW, mask.hidden_BHW)
    assert actual.mask.visible == mask.visible


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_model_takes_one_grid_for_the_whole_batch(make):
    model, img = make(), images(3)
    one = sampled(model, img).hidden_BHW[1]
    expected = model(img, torch.stack([one] * 3))
    assert torch.equal(model(img, one).loss, expected.loss)
    assert torch.equal(model(img, one).prediction, expected.prediction)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_model_takes_a_pixel_map_equal_to_the_grid_it_covers(make, shared):
    model, img = make(), images(3)
    hidden = sampled(model, img).hidden_BHW
    hidden = hidden[0] if shared else hidden
    expected, actual = model(img, hidden), model(img, pixel_map(hidden))
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.prediction, expected.prediction)


@torch.no_grad()
def test_model_hides_the_whole_patch_that_one_pixel_of_a_map_touches():
    model, img = mae(), images(2)
    hidden = sampled(model, img).hidden_BHW
    corners = torch.zeros(2, 32, 64, dtype=torch.bool)
    corners[:, ::8, ::8] = hidden  # one pixel of each hidden cell
    expected, actual = model(img, hidden), model(img, corners)
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.mask.hidden_BHW, hidden)


@torch.no_grad()
def test_model_refuses_uneven_counts_where_the_encoder_drops_and_takes_them_where_it_replaces():
    hidden = torch.zeros(2, 4, 8, dtype=torch.bool)
    hidden[0, 0, :3] = hidden[1, 1:3] = True
    img = images(2)
    with pytest.raises(ValueError, match=r"equal counts, or an encoder that replaces"):
        mae()(img, hidden)
    with pytest.raises(ValueError, match=r"equal counts, or an encoder that replaces"):
        mae()(img, pixel_map(hidden))
    output = simmim(loss_keys={"eps": 0.0})(img, hidden)
    where = pixel_map(hidden)[:, None].expand_as(img)
    assert output.loss.item() == pytest.approx((output.prediction - img).abs()[where].mean().item(), rel=1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_model_refuses_a_mask_that_fits_no_grid(make):
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[0, 0] = True
    with pytest.raises(ValueError, match="3x5 cells does not fit"):
        make()(images(2), hidden)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_model_refuses_a_mask_of_numbers(make):
    with pytest.raises(ValueError, match="a mask is a bool tensor"):
        make()(images(2), torch.ones(4, 8))


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize(("cell", "patch"), [(4, 8), (8, 16), (4, 16)])
def test_model_refuses_cells_finer_than_a_patch(cell, patch):
    with pytest.raises(ValueError, match=rf"MASKER\.cell {cell} is not a multiple of ENCODER\.patch {patch}"):
        mae(masker_keys={"cell": cell}, encoder_keys={"patch": patch})


@torch.no_grad()
def test_model_names_the_patch_of_an_encoder_that_has_no_key_for_it():
    with pytest.raises(
        ValueError, match=r"MASKER\.cell 4 is not a multiple of 8, the side of a patch of timm test_vit"
    ):
        assemble("random", "timm", "replace", "mlp", "pixels", "mse", masker_keys={"cell": 4})


def test_model_names_an_encoder_that_returns_no_features():
    model, img = simmim(), images(1)
    model.encoder.forward = lambda img_BCHW, mask: img_BCHW
    with pytest.raises(TypeError, match=r"ENCODER\.name swin returned Tensor, not mim\.Features"):
        model(img, sampled(model, img))


def test_model_takes_cells_coarser_than_a_patch():
    model, img = mae(masker_keys={"cell": 16, "ratio": 0.75}), images(2)
    mask = sampled(model, img)
    assert mask.hidden_BHW.shape == (2, 2, 4)
    assert torch.equal(model(img, mask).loss, model(img, mask.at(4, 8)).loss)


def test_model_refuses_an_encoder_that_hides_nothing():
    spec = EncoderSpec(16, 8, 8, (4, 8), drops_hidden=False, num_prefix=1)
    target = Pixels(IMAGE, spec)
    encoder = ViT(IMAGE, hidden="none", patch=8, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"ENCODER\.hidden none hides nothing.*use drop, replace or sparse"):
        MaskedImageModel(Random(IMAGE, cell=8), encoder, PixelShuffle(spec, target.spec), target, MSE())


def test_model_blocks_are_those_of_encoder_and_head_in_order():
    model = mae(head_keys={"depth": 3})
    assert model.blocks() == [*model.encoder.backbone.blocks, *model.head.layers]
    assert len(model.blocks()) == 5
    swin = simmim()
    assert swin.blocks() == [block for stage in swin.encoder.backbone.layers for block in stage.blocks]
    assert len(swin.blocks()) == 4


# ---------------------------------------------------------------- forward


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_model_forward_draws_nothing_from_the_global_generator(make):
    model, img = make().train(), images(2)
    mask = sampled(model, img)
    before = torch.get_rng_state()
    first, second = model(img, mask).loss, model(img, mask).loss
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_model_treats_samples_apart(make):
    model, img = make(), images(3)
    mask = sampled(model, img)
    prediction = model(img, mask).prediction
    for sample in range(3):
        alone = model(img[sample : sample + 1], PatchMask(mask.hidden_BHW[sample : sample + 1], mask.visible))
        torch.testing.assert_close(alone.prediction[0], prediction[sample], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=[] if name == "mae" else pytest.mark.slow, id=name) for name, make in MODELS.items()],
)
def test_model_compiles_as_one_graph_that_serves_every_mask(make):
    torch._dynamo.reset()
    model, counter = make(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(3):
        img = images(2, seed=seed)
        mask = sampled(model, img, seed)
        output = compiled(img, mask)
        torch.testing.assert_close(output.loss, model(img, mask).loss)
        output.loss.backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_model_compiles_with_the_plain_eager_backend(make):
    torch._dynamo.reset()
    model, img = make(), images(2)
    mask = sampled(model, img)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(img, mask).prediction, model(img, mask).prediction)
    torch._dynamo.reset()


@pytest.mark.parametrize("hidden", ["drop", "replace"])
def test_model_on_the_meta_device_needs_no_memory(hidden):
    with torch.device("meta"):
        model = assemble("random", "vit", hidden, "transformer", target_keys={"normalize": "patch"})
        output = model(torch.empty(2, 3, 32, 64), model.sample_mask(torch.empty(2, 3, 32, 64)))
    assert output.loss.is_meta
    assert output.prediction.shape == (2, 3, 32, 64)
