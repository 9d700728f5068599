import math

import pytest
import timm
import torch
from small_models import generator, hidings, images, members, small
from timm.layers import DropPath

from mim.encoders import Encoder, Swin, ViT
from mim.maskers.random import Random
from mim.structures import ImageSpec, PatchMask

SIZES = [(1, 32, 64), (3, 64, 32), (4, 32, 32), (12, 96, 160)]


def make(name, image=None, **keys):
    torch.manual_seed(0)
    return small(Encoder.named(name), image or ImageSpec(3, 32, 64), **keys).eval()


def masked(image, batch=2, cell=8, ratio=0.5, seed=1):
    return Random(image, cell=cell, ratio=ratio).sample(batch, generator(seed), torch.device("cpu"))


def other_hidden_pixels(img, mask, value):
    """The image with everything under the mask replaced."""
    return torch.where(mask.at(*img.shape[-2:])[:, None], value, img)


def timm_vit(image: ImageSpec, **keys):
    return timm.create_model(
        "vit_base_patch16_224",
        **{"img_size": (image.height, image.width), "in_chans": image.channels, "patch_size": 8, "num_classes": 0},
        **{"embed_dim": 16, "depth": 2, "num_heads": 2, **keys},
    ).eval()


def timm_swin(image: ImageSpec, **keys):
    return timm.create_model(
        "swin_base_patch4_window7_224",
        **{"img_size": (image.height, image.width), "in_chans": image.channels, "patch_size": 4, "num_classes": 0},
        **{"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, **keys},
    ).eval()


# ---------------------------------------------------------------- every encoder


@pytest.mark.parametrize(("name", "hidden"), hidings())
def test_encoder_without_a_mask_gives_every_token_and_is_deterministic_in_eval_mode(name, hidden):
    encoder, img = make(name, hidden=hidden, drop_path=0.5), images(8)
    with torch.no_grad():
        first, second = encoder(img), encoder(img)
        assert torch.equal(first.tokens_BND, second.tokens_BND)
        assert first.kept_BN is None
        assert first.grid == encoder.spec.grid
        assert first.tokens_BND.shape == (8, math.prod(encoder.spec.grid), encoder.spec.width)
        assert (0 if first.prefix_BKD is None else first.prefix_BKD.shape[1]) == encoder.spec.num_prefix
        encoder.train()  # the drop path above is really there
        assert not torch.equal(encoder(img).tokens_BND, encoder(img).tokens_BND)


@pytest.mark.parametrize(("name", "hidden"), hidings())
@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@torch.no_grad()
def test_encoder_features_never_depend_on_hidden_pixels(name, hidden, channels, height, width):
    image = ImageSpec(channels, height, width)
    encoder, img, mask = make(name, image, hidden=hidden), images(2, image), masked(image)
    expected = encoder(img, mask)
    for value in (1e6 * images(2, image, seed=9), torch.tensor(math.nan)):
        found = encoder(other_hidden_pixels(img, mask, value), mask)
        assert torch.equal(found.tokens_BND, expected.tokens_BND)
        if expected.prefix_BKD is not None:
            assert torch.equal(found.prefix_BKD, expected.prefix_BKD)
    assert not torch.equal(encoder(img + 1, mask).tokens_BND, expected.tokens_BND)


@pytest.mark.parametrize(("name", "hidden"), hidings())
@torch.no_grad()
def test_encoder_features_depend_on_every_visible_cell(name, hidden):
    image = ImageSpec(3, 32, 64)
    encoder, img, mask = make(name, hidden=hidden), images(1), masked(image, batch=1)
    expected = encoder(img, mask).tokens_BND
    for row, column in (~mask.hidden_BHW[0]).nonzero().tolist():
        changed = img.clone()
        changed[:, 1, row * 8 + 3, column * 8 + 5] += 5.0
        assert not torch.equal(encoder(changed, mask).tokens_BND, expected), (row, column)


@pytest.mark.parametrize(("name", "hidden"), hidings())
@torch.no_grad()
def test_encoder_features_depend_on_which_cells_are_hidden(name, hidden):
    image = ImageSpec(3, 32, 64)
    encoder, img = make(name, hidden=hidden), images(2)
    first, second = (encoder(img, masked(image, seed=seed)).tokens_BND for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", members(Encoder))
@torch.no_grad()
def test_encoder_that_hides_nothing_is_the_same_backbone_without_a_mask_token(name):
    plain, replacing = make(name, hidden="none"), make(name, hidden="replace")
    assert "mask_token" not in plain.state_dict()
    assert set(replacing.state_dict()) - set(plain.state_dict()) == {"mask_token"}
    plain.load_state_dict(replacing.state_dict(), strict=False)
    assert torch.equal(plain(images()).tokens_BND, replacing(images()).tokens_BND)
    with pytest.raises(ValueError, match="hidden: none cannot replace"):
        plain(images(), masked(plain.image))


@pytest.mark.parametrize(("name", "part"), [item for item in members(Encoder).items() if not item[1].can_drop])
def test_encoder_that_cannot_drop_names_the_alternatives(name, part):
    with pytest.raises(ValueError, match=rf"hidden: drop is not possible.*{name}.*use ENCODER\.hidden replace.*vit"):
        make(name, hidden="drop")


@pytest.mark.parametrize("name", members(Encoder))
@pytest.mark.parametrize(("size", "axis"), [((36, 64), "height 36"), ((32, 68), "width 68")])
def test_encoder_names_the_axis_that_its_patches_do_not_divide(name, size, axis):
    with pytest.raises(ValueError, match=f"ENCODER.* 8 does not divide the image {axis}"):
        make(name, ImageSpec(3, *size))


@pytest.mark.parametrize("name", members(Encoder))
def test_encoder_has_no_drop_path_unless_asked(name):
    def rates(encoder):
        return [module.drop_prob for module in encoder.modules() if isinstance(module, DropPath) and module.drop_prob]

    assert rates(make(name)) == []
    asked = rates(make(name, drop_path=0.3))
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(0.3)


@pytest.mark.parametrize("name", members(Encoder))
def test_encoder_without_drop_path_is_deterministic_in_training_mode(name):
    encoder = make(name).train()
    assert torch.equal(encoder(images()).tokens_BND, encoder(images()).tokens_BND)


# ---------------------------------------------------------------- ViT


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@torch.no_grad()
def test_vit_without_a_mask_equals_timms_own_vit(positions, class_token, channels, height, width):
    image = ImageSpec(channels, height, width)
    encoder = make("vit", image, positions=positions, class_token=class_token)
    other = timm_vit(image, class_token=class_token, global_pool="" if class_token else "avg", fc_norm=False)
    other.load_state_dict(encoder.backbone.state_dict(), strict=True)
    features = encoder(images(2, image))
    tokens = features.tokens_BND
    if class_token:
        tokens = torch.cat([features.prefix_BKD, tokens], dim=1)
    else:
        assert features.prefix_BKD is None
    torch.testing.assert_close(tokens, other.forward_features(images(2, image)), rtol=0, atol=1e-6)
    assert torch.equal(tokens, encoder.backbone.forward_features(images(2, image)))


def test_vit_backbone_has_timms_parameter_names_and_shapes():
    image = ImageSpec(3, 32, 64)
    ours, theirs = make("vit").backbone.state_dict(), timm_vit(image).state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in theirs.items()}


@pytest.mark.parametrize("class_token", [True, False])
@torch.no_grad()
def test_vit_that_drops_equals_timms_blocks_on_only_the_kept_tokens(class_token):
    image = ImageSpec(3, 32, 64)
    encoder = make("vit", hidden="drop", class_token=class_token, positions="learned")
    img, mask = images(3), masked(image, batch=3)
    features = encoder(img, mask)
    backbone, prefix = encoder.backbone, int(class_token)
    for sample in range(3):
        kept = [i for i, hidden in enumerate(mask.hidden_BHW[sample].flatten().tolist()) if not hidden]
        tokens = (backbone.patch_embed(img) + backbone.pos_embed[:, prefix:])[sample, kept]
        if class_token:
            tokens = torch.cat([backbone.cls_token[0] + backbone.pos_embed[0, :1], tokens])
        tokens = backbone.norm(backbone.blocks(tokens[None]))[0]
        torch.testing.assert_close(features.tokens_BND[sample], tokens[prefix:], rtol=0, atol=1e-6)
        assert features.kept_BN[sample].tolist() == kept
        if class_token:
            torch.testing.assert_close(features.prefix_BKD[sample], tokens[:1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_vit_that_drops_takes_cells_larger_than_its_patches():
    image = ImageSpec(3, 32, 64)
    encoder, img = make("vit", hidden="drop"), images(2)
    coarse = masked(image, cell=16)
    fine = PatchMask.given(coarse.at(4, 8), 2)
    assert torch.equal(encoder(img, coarse).tokens_BND, encoder(img, fine).tokens_BND)
    assert encoder(img, coarse).tokens_BND.shape[1] == 16


@torch.no_grad()
def test_vit_that_replaces_puts_the_token_in_before_positions_are_added():
    encoder, img = make("vit", hidden="replace"), images(2)
    mask = masked(encoder.image)
    backbone, tokens = encoder.backbone, encoder.backbone.patch_embed(img)
    for sample, token in mask.hidden_BHW.flatten(1).nonzero().tolist():
        tokens[sample, token] = encoder.mask_token[0, 0]
    tokens = torch.cat([backbone.cls_token.expand(2, -1, -1), tokens], dim=1) + backbone.pos_embed
    tokens = backbone.norm(backbone.blocks(tokens))
    torch.testing.assert_close(encoder(img, mask).tokens_BND, tokens[:, 1:], rtol=0, atol=1e-6)


def test_vit_positions_are_trained_only_where_learned():
    fixed, learned = (make("vit", positions=positions).backbone.pos_embed for positions in ("sincos", "learned"))
    assert not fixed.requires_grad
    assert learned.requires_grad
    assert learned.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(fixed[0, 0], torch.zeros(16))  # the class token's row


def test_vit_starts_as_mae_does():
    torch.manual_seed(0)
    encoder = ViT(ImageSpec(3, 32, 64), hidden="replace", patch=16, width=768, depth=2, heads=12)
    backbone = encoder.backbone
    for token in (backbone.cls_token, encoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
        assert abs(token.mean().item()) < 5 * 0.02 / math.sqrt(768)
        assert token.abs().max() > 0.04  # not cut at two deviations
    projection = backbone.patch_embed.proj
    bound = math.sqrt(6 / (3 * 16 * 16 + 768))  # as a (768, 768) matrix, not as a convolution
    assert 0.999 * bound < projection.weight.abs().max() <= bound
    assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert 0 < projection.bias.abs().max() <= 1 / math.sqrt(3 * 16 * 16)  # as PyTorch makes it
    for block in backbone.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            bound = math.sqrt(6 / (linear.in_features + linear.out_features))
            assert 0.999 * bound < linear.weight.abs().max() <= bound
            assert not linear.bias.any()
        for norm in (block.norm1, block.norm2):
            assert norm.eps == 1e-6
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
    assert backbone.norm.eps == 1e-6


def test_vit_refuses_heads_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match=r"ENCODER\.heads 3 does not divide ENCODER\.width 16"):
        make("vit", heads=3)


# ---------------------------------------------------------------- Swin


@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@torch.no_grad()
def test_swin_without_a_mask_equals_timms_own_swin(channels, height, width):
    image = ImageSpec(channels, height, width)
    encoder, other = make("swin", image), timm_swin(image)
    other.load_state_dict(encoder.backbone.state_dict(), strict=True)
    expected = other.forward_features(images(2, image))
    tokens = encoder(images(2, image)).tokens_BND
    assert expected.shape[1:3] == encoder.spec.grid
    torch.testing.assert_close(tokens, expected.flatten(1, 2), rtol=0, atol=1e-6)
    assert torch.equal(tokens, encoder.backbone.forward_features(images(2, image)).flatten(1, 2))


def test_swin_backbone_has_timms_parameter_names_and_shapes():
    image = ImageSpec(3, 32, 64)
    ours, theirs = make("swin").backbone.state_dict(), timm_swin(image).state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in theirs.items()}


@torch.no_grad()
def test_swin_that_replaces_puts_its_token_in_every_hidden_patch_before_the_first_stage():
    encoder, img = make("swin", hidden="replace"), images(2)
    mask = masked(encoder.image)  # cells of 8 px hide 2 x 2 patches of 4 px
    tokens = encoder.backbone.patch_embed(img)
    for sample, row, column in mask.hidden_BHW.nonzero().tolist():
        tokens[sample, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = encoder.mask_token[0, 0]
    expected = encoder.backbone.norm(encoder.backbone.layers(tokens))
    torch.testing.assert_close(encoder(img, mask).tokens_BND, expected.flatten(1, 2), rtol=0, atol=1e-6)


def test_swin_mask_token_starts_as_simmims():
    torch.manual_seed(0)
    token = Swin(ImageSpec(3, 32, 32), width=512, depths=(1,), heads=(4,), window=8).mask_token
    assert token.numel() == 512
    assert token.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("size", "window", "message"),
    [
        ((32, 48), 4, "the width of stage 1, 6 tokens"),
        ((48, 32), 4, "the height of stage 1, 6 tokens"),
        ((32, 64), 3, "the height of stage 0, 8 tokens"),
        ((32, 64), 8, None),
        ((32, 64), 16, None),  # larger than every stage: one window each
    ],
)
def test_swin_names_stage_and_axis_that_its_window_does_not_tile(size, window, message):
    if message is None:
        image = ImageSpec(3, *size)
        encoder, other = make("swin", image, window=window), timm_swin(image, window_size=window)
        other.load_state_dict(encoder.backbone.state_dict(), strict=True)
        expected = other.forward_features(images(1, image)).flatten(1, 2)
        torch.testing.assert_close(encoder(images(1, image)).tokens_BND, expected, rtol=0, atol=1e-6)
        return
    with pytest.raises(ValueError, match=rf"ENCODER\.window {window} does not divide {message}"):
        make("swin", ImageSpec(3, *size), window=window)


def test_swin_refuses_stages_that_do_not_match():
    with pytest.raises(ValueError, match=r"one number a stage"):
        make("swin", depths=(2, 2, 2))
    with pytest.raises(ValueError, match=r"ENCODER\.heads 3 does not divide the width 16 of stage 1"):
        make("swin", heads=(2, 3))
