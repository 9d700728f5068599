import math

import pytest
import timm
import torch
from einops import rearrange
from small_models import generator, hidings, images, members, shaken, small
from timm.layers import DropPath
from torch import nn

from mim.encoders import Encoder, Swin, SwinV2, ViT
from mim.maskers.random import Random
from mim.structures import Features, ImageSpec, PatchMask

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
        output = encoder(other_hidden_pixels(img, mask, value), mask)
        assert torch.equal(output.tokens_BND, expected.tokens_BND)
        if expected.prefix_BKD is not None:
            assert torch.equal(output.prefix_BKD, expected.prefix_BKD)
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
    key = "(ENCODER.patch|the encoder's (stride|patch))"
    with pytest.raises(ValueError, match=f"{key} 8 does not divide the image {axis}"):
        make(name, ImageSpec(3, *size))


@pytest.mark.parametrize("name", members(Encoder))
def test_encoder_has_no_drop_path_unless_asked(name):
    def rates(encoder):
        return [module.drop_prob for module in encoder.modules() if isinstance(module, DropPath) and module.drop_prob]

    assert rates(make(name)) == []
    positive = rates(make(name, drop_path=0.3))
    assert positive == sorted(positive)
    assert positive[-1] == pytest.approx(0.3)


@pytest.mark.parametrize("name", members(Encoder))
def test_encoder_without_drop_path_is_deterministic_in_training_mode(name):
    encoder = make(name).train()
    assert torch.equal(encoder(images()).tokens_BND, encoder(images()).tokens_BND)


SEEDS = {"positions": "learned", "class_position": False, "qkv_bias": False, "head_width": 3, "patch_norm": True}
VARIANTS = {
    "plain": {},
    "seeds": SEEDS,
    "no-norm": {"norm": False},
    "post-norm": {"norm": False, "norm_first": False},
    "learned": {"positions": "learned"},
    "no-class-token": {"class_token": False, "norm": False, "positions": "learned"},
}
KINDS = [(name, hidden, {}) for name, hidden in [*hidings(), *((name, "none") for name in members(Encoder))]]
KINDS += [("vit", hidden, keys) for keys in VARIANTS.values() if keys for hidden in ("drop", "replace", "none")]


@pytest.mark.parametrize(("name", "hidden", "keys"), KINDS)
def test_encoder_gives_every_trained_parameter_a_gradient(name, hidden, keys):
    encoder = make(name, hidden=hidden, **keys).train()
    tokens = encoder(images(2), None if hidden == "none" else masked(encoder.image)).tokens_BND
    (tokens * torch.randn(tokens.shape, generator=generator(3))).sum().backward()
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


# ---------------------------------------------------------------- layers, as layer decay and freezing see them


class Custom(Encoder):
    """An encoder of a user's own, which says of itself only what it must, and perhaps its blocks."""

    def __init__(self, hidden, names_blocks):
        super().__init__(ImageSpec(1, 16, 16), hidden, width=8, patch=4)
        self.names_blocks = names_blocks
        self.embed = nn.Conv2d(1, 8, 4, 4)
        self.mixers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(8))

    def blocks(self):
        return list(self.mixers) if self.names_blocks else super().blocks()

    def forward(self, img_BCHW, mask=None):
        tokens_BND = self.replace_hidden(rearrange(self.embed(img_BCHW), "b d h w -> b (h w) d"), mask)
        for mixer in self.mixers:
            tokens_BND = tokens_BND + mixer(tokens_BND)
        return Features(tokens_BND * self.scale, self.spec.grid)


def vit_of_three():
    return ViT(ImageSpec(1, 16, 16), hidden="replace", patch=8, width=8, depth=3, heads=2)


def swin_of_three_stages(part=Swin):
    return part(ImageSpec(1, 64, 64), patch=4, width=8, depths=(2, 1, 3), heads=(2, 2, 2), window=4)


def beit(bias):
    return Encoder.named("beit")(ImageSpec(1, 16, 16), patch=8, width=8, depth=2, heads=2, bias=bias)


OF_SWIN = {
    "mask_token": 0,
    "backbone.patch_embed.": 0,
    "backbone.layers.0.blocks.0.": 1,
    "backbone.layers.0.blocks.1.": 2,
    "backbone.layers.1.downsample.": 2,  # in SimMIM's Swin it closes stage 0
    "backbone.layers.1.blocks.0.": 3,
    "backbone.layers.2.downsample.": 3,
    "backbone.layers.2.blocks.0.": 4,
    "backbone.layers.2.blocks.1.": 5,
    "backbone.layers.2.blocks.2.": 6,
    "backbone.norm.": 7,
}
LAYERS = {  # of each parameter, by how its name begins; the last number is that of what stands on the encoder
    "vit": (
        vit_of_three,
        {
            "mask_token": 0,
            "backbone.cls_token": 0,
            "backbone.pos_embed": 0,
            "backbone.patch_embed.": 0,
            "backbone.blocks.0.": 1,
            "backbone.blocks.1.": 2,
            "backbone.blocks.2.": 3,
            "backbone.norm.": 4,
        },
        4,
    ),
    "swin": (swin_of_three_stages, OF_SWIN, 7),
    "swin_v2": (lambda: swin_of_three_stages(SwinV2), OF_SWIN, 7),
    "beit of shared biases": (
        lambda: beit("shared"),
        {
            "mask_token": 0,
            "backbone.cls_token": 0,
            "backbone.patch_embed.": 0,
            "backbone.blocks.0.": 1,
            "backbone.blocks.1.": 2,
            "backbone.rel_pos_bias.": 3,  # all blocks use it
            "backbone.norm.": 3,
        },
        3,
    ),
    "beit of a bias in each block": (
        lambda: beit("block"),
        {
            "mask_token": 0,
            "backbone.cls_token": 0,
            "backbone.patch_embed.": 0,
            "backbone.blocks.0.": 1,
            "backbone.blocks.1.": 2,
            "backbone.norm.": 3,
        },
        3,
    ),
    "custom": (
        lambda: Custom("replace", names_blocks=False),
        {"mask_token": 0, "embed.": 0, "mixers.": 0, "scale": 0},
        1,
    ),
    "custom with blocks": (
        lambda: Custom("none", names_blocks=True),
        {"embed.": 0, "mixers.0.": 1, "mixers.1.": 2, "scale": 0},
        3,
    ),
}


def named_by(table, names):
    """Each name with the entry by which it begins; every entry names something, and every name has one entry."""
    entries = {name: [begin for begin in table if name.startswith(begin)] for name in names}
    assert all(len(begins) == 1 for begins in entries.values())
    assert {begins[0] for begins in entries.values()} == set(table)
    return {name: table[begins[0]] for name, begins in entries.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_encoder_layer_ids_are_those_of_mae_and_simmim(kind):
    build, table, top = LAYERS[kind]
    encoder = build()
    names = [name for name, _ in encoder.named_parameters()]
    assert encoder.layer_ids() == named_by(table, names)
    assert encoder.top_layer == top


@pytest.mark.parametrize("kind", LAYERS)
def test_encoder_rate_factors_fall_by_the_decay_from_the_top_down(kind):
    """MAE, util/lr_decay.py: layer_decay ** (num_layers - i); SimMIM, optimizer.py: the same, written reversed."""
    build, table, top = LAYERS[kind]
    encoder = build()
    factors = {begin: 0.5 ** (top - layer) for begin, layer in table.items()}
    assert encoder.lr_scales(0.5) == named_by(factors, [name for name, _ in encoder.named_parameters()])
    assert set(encoder.lr_scales(1.0).values()) == {1.0}


def simmims_swin_layer(name, depths):
    """SimMIM, optimizer.py, get_swin_layer, on a name of its own Swin, whose stages end with their downsampling."""
    if name == "mask_token" or name.startswith("patch_embed"):
        return 0
    if not name.startswith("layers"):
        return sum(depths) + 1
    stage, block = int(name.split(".")[1]), name.split(".")[3]
    if block in ("reduction", "norm"):
        return sum(depths[: stage + 1])
    return sum(depths[:stage]) + int(block) + 1


@pytest.mark.parametrize("part", [Swin, SwinV2])
def test_swin_layer_ids_equal_simmims_own_numbering(part):
    encoder = swin_of_three_stages(part)
    for name, layer in encoder.layer_ids().items():
        theirs = name.removeprefix("backbone.")
        if ".downsample." in theirs:  # timm opens a stage with it
            theirs = theirs.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.1.")
        assert layer == simmims_swin_layer(theirs, (2, 1, 3)), name


@pytest.mark.parametrize("kind", LAYERS)
def test_encoder_layers_hold_no_parameter_twice_and_blocks_stand_in_their_order(kind):
    encoder = LAYERS[kind][0]()
    layers = encoder.layer_parameters()
    ids = [id(parameter) for layer in layers for parameter in layer]
    assert len(ids) == len(set(ids))
    assert set(ids) <= {id(parameter) for parameter in encoder.parameters()}
    for layer, block in zip(layers[1:], encoder.blocks(), strict=True):
        assert {id(parameter) for parameter in block.parameters()} <= {id(parameter) for parameter in layer}


@pytest.mark.parametrize("name", members(Encoder))
def test_encoder_upper_half_of_a_block_is_its_mlp_with_its_norm(name):
    """Without it a block is its attention alone, and with it the rest of the same block."""
    encoder = make(name, hidden="none")
    for block in encoder.blocks():
        half = encoder.upper_half(block)
        names = {id(parameter): name for name, parameter in block.named_parameters()}
        parts = [[part] if isinstance(part, nn.Parameter) else part.parameters() for part in half]
        upper_names = {names[id(parameter)] for parameters in parts for parameter in parameters}
        assert {name.split(".")[0] for name in upper_names} - {"gamma_2"} == {"norm2", "mlp"}
        assert {name.split(".")[0] for name in set(names.values()) - upper_names} - {"gamma_1"} == {"norm1", "attn"}


def test_encoder_of_a_user_has_no_halves_unless_it_says_so():
    encoder = Custom("none", names_blocks=True)
    assert encoder.upper_half(encoder.blocks()[0]) == []


@pytest.mark.parametrize("name", members(Encoder))
@pytest.mark.parametrize("image_size", [None, (32, 64)])
def test_encoder_fits_its_own_weights_by_leaving_them_alone(name, image_size):
    encoder = make(name)
    for key, weight in encoder.state_dict().items():
        assert encoder.resize_weight(key, weight, image_size) is weight


# ---------------------------------------------------------------- ViT


@pytest.mark.parametrize("hidden", ["drop", "replace", "none"])
@torch.no_grad()
def test_vit_without_norm_gives_the_tokens_that_the_norm_would_take(hidden):
    with_norm, plain = (make("vit", hidden=hidden, norm=norm) for norm in (True, False))
    for parameter in with_norm.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(4)))
    missing = set(with_norm.state_dict()) - set(plain.state_dict())
    assert missing == {"backbone.norm.weight", "backbone.norm.bias"}
    assert [name for name, _ in plain.named_parameters() if name.startswith("backbone.norm")] == []
    plain.load_state_dict({name: w for name, w in with_norm.state_dict().items() if name not in missing})
    mask = None if hidden == "none" else masked(plain.image)
    expected, output = with_norm(images(), mask), plain(images(), mask)
    norm = with_norm.backbone.norm
    for theirs, ours in ((expected.tokens_BND, output.tokens_BND), (expected.prefix_BKD, output.prefix_BKD)):
        assert torch.equal(theirs, nn.functional.layer_norm(ours, (16,), norm.weight, norm.bias, 1e-6))
        assert not torch.allclose(theirs, ours)


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
    torch.testing.assert_close(tokens, other.forward_features(images(2, image)), rtol=0, atol=5e-6)
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
        visible = [i for i, hidden in enumerate(mask.hidden_BHW[sample].flatten().tolist()) if not hidden]
        tokens = (backbone.patch_embed(img) + backbone.pos_embed[:, prefix:])[sample, visible]
        if class_token:
            tokens = torch.cat([backbone.cls_token[0] + backbone.pos_embed[0, :1], tokens])
        tokens = backbone.norm(backbone.blocks(tokens[None]))[0]
        torch.testing.assert_close(features.tokens_BND[sample], tokens[prefix:], rtol=0, atol=5e-6)
        assert features.kept_BN[sample].tolist() == visible
        if class_token:
            torch.testing.assert_close(features.prefix_BKD[sample], tokens[:1], rtol=0, atol=5e-6)


@torch.no_grad()
def test_vit_that_drops_takes_cells_larger_than_its_patches():
    image = ImageSpec(3, 32, 64)
    encoder, img = make("vit", hidden="drop"), images(2)
    coarse = masked(image, cell=16)
    fine = PatchMask.from_tensor(coarse.at(4, 8), 2)
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


def test_vit_starts_as_pytorch_makes_it_where_asked():
    """vit-pytorch fills nothing but tokens and positions, which are normal with a standard deviation of 1."""
    torch.manual_seed(0)
    keys = {"patch": 16, "width": 768, "depth": 1, "heads": 12, "qkv_bias": False, "positions": "learned"}
    encoder = ViT(ImageSpec(3, 32, 64), hidden="replace", linear_init="pytorch", init_std=1.0, **keys)
    backbone = encoder.backbone
    for weight in (backbone.cls_token, backbone.pos_embed, encoder.mask_token):
        assert weight.std().item() == pytest.approx(1, rel=0.1)
        assert weight.abs().max() > 2.2
    block = backbone.blocks[0]
    assert block.attn.qkv.bias is None
    for layer in (backbone.patch_embed.proj, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        bound = layer.weight[0].numel() ** -0.5
        assert 0.999 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or 0.9 * bound < layer.bias.abs().max() <= bound


def test_vit_starts_normal_where_asked():
    """MaskFeat and I-JEPA: every matrix, that of the patches too, has a standard deviation of .02; biases are zero."""
    torch.manual_seed(0)
    encoder = ViT(ImageSpec(3, 32, 64), linear_init="normal", patch=16, width=768, depth=1, heads=12)
    block = encoder.backbone.blocks[0]
    for layer in (encoder.backbone.patch_embed.proj, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)
        assert layer.weight.abs().max() > 0.08  # normal, not uniform
        assert not layer.bias.any()


@pytest.mark.parametrize("hidden", ["drop", "replace", "none"])
@torch.no_grad()
def test_vit_with_norms_around_its_patches_embeds_each_patch_by_itself(hidden):
    encoder, img = make("vit", hidden=hidden, patch_norm=True, norm_eps=1e-3), images(2)
    projection, (before, after) = (
        encoder.backbone.patch_embed.proj,
        (encoder.pixel_norm, encoder.backbone.patch_embed.norm),
    )
    assert (before.eps, after.eps, encoder.backbone.norm.eps) == (1e-3,) * 3
    tokens = torch.empty(2, 32, 16)
    for token in range(32):
        top, left = token // 8 * 8, token % 8 * 8
        pixels = before(img[:, :, top : top + 8, left : left + 8].flatten(1))
        tokens[:, token] = after(pixels @ projection.weight.flatten(1).T + projection.bias)
    tokens = torch.cat([encoder.backbone.cls_token.expand(2, -1, -1), tokens], dim=1) + encoder.backbone.pos_embed
    expected = encoder.backbone.norm(encoder.backbone.blocks(tokens))[:, 1:]
    torch.testing.assert_close(encoder(img).tokens_BND, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_vit_with_norms_behind_residual_sums_equals_its_formulas():
    """data2vec 2.0: a norm ahead of the first block and behind each sum, none at the end."""
    encoder = shaken(make("vit", norm_first=False, norm=False, class_position=False).double()).eval()
    backbone, img = encoder.backbone, images(2, dtype=torch.float64)

    def norm(x_BND, layer):
        deviation_BN1 = (x_BND.var(dim=2, correction=0, keepdim=True) + 1e-6).sqrt()
        return (x_BND - x_BND.mean(dim=2, keepdim=True)) / deviation_BN1 * layer.weight + layer.bias

    patches_BND = backbone.patch_embed(img) + backbone.pos_embed
    x_BND = norm(torch.cat([backbone.cls_token.expand(2, -1, -1), patches_BND], dim=1), encoder.first_norm)
    for block in backbone.blocks:
        x_BND = norm(x_BND + block.attn(x_BND), block.norm1)
        x_BND = norm(x_BND + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(x_BND))), block.norm2)
    features = encoder(img)
    torch.testing.assert_close(features.tokens_BND, x_BND[:, 1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(features.prefix_BKD, x_BND[:, :1], rtol=0, atol=1e-12)
    assert encoder.layer_ids()["first_norm.weight"] == 0
    assert ViT.infer_config(encoder.state_dict()).keys["norm_first"] is False
    assert ViT.infer_config(make("vit").state_dict()).keys["norm_first"] is True


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"norm_eps": 0.0}, r"ENCODER\.norm_eps is 0\.0: it must be above 0"),
        ({"init_std": 0.0}, r"ENCODER\.init_std is 0\.0: it must be above 0"),
        ({"head_width": -1}, r"ENCODER\.head_width is -1: it must be at least 0"),
    ],
)
def test_vit_refuses_numbers_that_make_no_model(keys, message):
    with pytest.raises(ValueError, match=message):
        make("vit", **keys)


def test_vit_with_heads_of_their_own_width_needs_no_divisor():
    attention = make("vit", heads=3, head_width=5).backbone.blocks[1].attn
    assert (attention.qkv.weight.shape, attention.proj.weight.shape) == ((45, 16), (16, 15))
    assert attention.scale == 5**-0.5


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
