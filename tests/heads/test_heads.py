import math
from dataclasses import replace

import pytest
import torch
from small_models import members, small

from mim.heads import MLP, CrossAttention, Head, PixelShuffle, Transformer
from mim.structures import EncoderSpec, Features, TargetSpec

DENSE = EncoderSpec(width=12, stride=8, patch=8, grid=(3, 4), drops_hidden=False, num_prefix=1)
DROPPED = replace(DENSE, drops_hidden=True)
TARGET = TargetSpec(channels=3, stride=2)
FACTOR = 4


def features(spec=DENSE, batch=2, seed=0):
    torch.manual_seed(seed)
    tokens = torch.randn(batch, math.prod(spec.grid), spec.width, dtype=torch.float64)
    prefix = torch.randn(batch, spec.num_prefix, spec.width, dtype=torch.float64) if spec.num_prefix else None
    return Features(tokens, spec.grid, None, prefix)


def build_head(part, spec=DENSE, target=TARGET, **keys):
    torch.manual_seed(1)
    spec = DROPPED if part.hidden_only else spec
    return small(part, spec, target, **keys).double()


# ---------------------------------------------------------------- every head


@pytest.mark.parametrize("name", members(Head))
@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (1, 2), (12, 4), (5, 8)])
def test_head_answers_in_the_layout_of_the_target(name, channels, stride):
    head = build_head(Head.named(name), target=TargetSpec(channels, stride))
    assert head(features()).map_BCHW.shape == (2, channels, 24 // stride, 32 // stride)


@pytest.mark.parametrize("name", members(Head))
@pytest.mark.parametrize("stride", [3, 5, 16])
def test_head_refuses_a_target_stride_that_does_not_divide_its_tokens(name, stride):
    with pytest.raises(ValueError, match=rf"TARGET\.stride {stride} does not divide the encoder's stride of 8"):
        build_head(Head.named(name), target=TargetSpec(3, stride))


@pytest.mark.parametrize("part", [PixelShuffle, MLP])
def test_head_that_predicts_each_token_alone_refuses_dropped_features(part):
    way_out = r"use HEAD\.name .*transformer.*, or ENCODER\.hidden replace"
    with pytest.raises(ValueError, match=rf"HEAD\.name {part.name} .*was dropped: {way_out}"):
        build_head(part, DROPPED)


@pytest.mark.parametrize("part", [PixelShuffle, MLP])
def test_head_that_predicts_each_token_alone_draws_each_token_in_its_own_place(part):
    head, inputs = build_head(part), features()
    expected = head(inputs).map_BCHW
    for token in range(12):
        tokens = inputs.tokens_BND.clone()
        tokens[:, token] += 1
        changed = (head(replace(inputs, tokens_BND=tokens)).map_BCHW != expected).any(dim=1)
        row, column = token // 4 * FACTOR, token % 4 * FACTOR
        inside = changed[:, row : row + FACTOR, column : column + FACTOR]
        assert inside.all()
        assert changed.sum() == inside.sum()


# ---------------------------------------------------------------- pixel shuffle


def test_pixel_shuffle_equals_a_convolution_and_torchs_pixel_shuffle():
    head, inputs = build_head(PixelShuffle), features()
    grid = inputs.tokens_BND.transpose(1, 2).reshape(2, 12, 3, 4)  # as in SimMIM: (B, L, C) to (B, C, H, W)
    convolved = torch.nn.functional.conv2d(grid, head.conv.weight, head.conv.bias)
    map_BCHW = head(inputs).map_BCHW
    torch.testing.assert_close(map_BCHW, torch.pixel_shuffle(convolved, FACTOR), rtol=0, atol=1e-12)
    for row in range(12):
        for column in range(16):
            channel = (row % FACTOR) * FACTOR + column % FACTOR  # the channels of one colour lie together
            expected = convolved[:, channel :: FACTOR**2, row // FACTOR, column // FACTOR]
            torch.testing.assert_close(map_BCHW[:, :, row, column], expected, rtol=0, atol=1e-12)


def test_mlp_equals_its_layers_with_pixels_in_row_column_channel_order():
    head, inputs = build_head(MLP, width=7, depth=2), features()
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(12, 7), (7, 7), (7, 48)]
    x = inputs.tokens_BND
    for index, layer in enumerate(linears):
        x = x @ layer.weight.T + layer.bias
        if index < 2:
            x = torch.nn.functional.gelu(x)
    map_BCHW = head(inputs).map_BCHW
    for row in range(12):
        for column in range(16):
            index = ((row % FACTOR) * FACTOR + column % FACTOR) * 3
            expected = x[:, row // FACTOR * 4 + column // FACTOR, index : index + 3]
            torch.testing.assert_close(map_BCHW[:, :, row, column], expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- transformer


def mae_decoder(head, latent, ids_restore):
    """forward_decoder and unpatchify of facebookresearch/mae, models_mae.py, on this head's weights."""
    x = head.embed(latent)
    mask_tokens = head.mask_token.repeat(x.shape[0], ids_restore.shape[1] + 1 - x.shape[1], 1)
    x_ = torch.cat([x[:, 1:, :], mask_tokens], dim=1)
    x_ = torch.gather(x_, dim=1, index=ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
    x = torch.cat([x[:, :1, :], x_], dim=1)
    x = x + head.positions
    for block in head.layers:
        x = block(x)
    x = head.predict(head.norm(x))[:, 1:, :]
    x = x.reshape(x.shape[0], 3, 4, FACTOR, FACTOR, 3)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 3, 3 * FACTOR, 4 * FACTOR)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_visible", [1, 3, 11])
@torch.no_grad()
def test_transformer_equals_maes_decoder_with_ids_restore(depth, num_visible):
    head = build_head(Transformer, DROPPED, depth=depth)
    torch.nn.init.normal_(head.mask_token)
    shuffled = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    ids_restore, ids_keep = shuffled.argsort(dim=1), shuffled[:, :num_visible]
    inputs = features()
    tokens = inputs.tokens_BND.gather(1, ids_keep[..., None].expand(-1, -1, 12))
    expected = mae_decoder(head, torch.cat([inputs.prefix_BKD, tokens], dim=1), ids_restore)
    map_BCHW = head(Features(tokens, (3, 4), ids_keep, inputs.prefix_BKD)).map_BCHW
    torch.testing.assert_close(map_BCHW, expected, rtol=0, atol=1e-12)
    order = ids_keep.argsort(dim=1)  # row-major, as the encoder gives them
    sorted_tokens = tokens.gather(1, order[..., None].expand(-1, -1, 12))
    map_BCHW = head(Features(sorted_tokens, (3, 4), ids_keep.gather(1, order), inputs.prefix_BKD)).map_BCHW
    torch.testing.assert_close(map_BCHW, expected, rtol=0, atol=1e-12)


def test_transformer_has_a_mask_token_only_where_places_are_dropped():
    assert build_head(Transformer, DENSE).mask_token is None
    assert not [name for name, _ in build_head(Transformer, DENSE).named_parameters() if "mask" in name]
    token = Transformer(DROPPED, TARGET, width=512, depth=1).mask_token
    assert token.std().item() == pytest.approx(0.02, rel=0.15)


@torch.no_grad()
def test_transformer_of_dropped_features_that_kept_everything_equals_dense_ones():
    dropped, dense, inputs = build_head(Transformer, DROPPED), build_head(Transformer, DENSE), features()
    dense.load_state_dict({name: weight for name, weight in dropped.state_dict().items() if name != "mask_token"})
    everything = torch.arange(12).expand(2, -1)
    map_BCHW = dropped(Features(inputs.tokens_BND, (3, 4), everything, inputs.prefix_BKD)).map_BCHW
    assert torch.equal(map_BCHW, dense(inputs).map_BCHW)
    unmasked = dropped(inputs).map_BCHW  # an encoder that drops, asked without a mask
    assert torch.equal(unmasked, map_BCHW)


@torch.no_grad()
def test_transformer_passes_prefix_tokens_through_its_blocks():
    head, inputs = build_head(Transformer), features()
    changed = head(replace(inputs, prefix_BKD=inputs.prefix_BKD + 1)).map_BCHW
    assert not torch.equal(changed, head(inputs).map_BCHW)


@torch.no_grad()
def test_transformer_works_without_prefix_tokens():
    spec = replace(DENSE, num_prefix=0)
    head, inputs = build_head(Transformer, spec), features(spec)
    assert head.positions.shape == (1, 12, 16)
    tokens = inputs.tokens_BND.clone()
    tokens[:, 0] += 1
    changed = head(replace(inputs, tokens_BND=tokens)).map_BCHW != head(inputs).map_BCHW
    assert changed.any(dim=1).float().mean() > 0.99  # tokens are mixed: every place hears of it


def test_transformer_starts_as_mae_does():
    head = build_head(Transformer, DROPPED, width=64)
    for linear in (module for module in head.modules() if isinstance(module, torch.nn.Linear)):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    norms = [module.eps for module in head.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms == [1e-6] * 3
    assert "positions" not in head.state_dict()


@torch.no_grad()
def test_transformer_adds_positions_to_hidden_tokens_alone_where_asked():
    """Then it is the decoder without positions whose mask token is another one in each place."""
    keys = {"positions": "learned", "positions_of": "hidden"}
    head, plain, inputs = build_head(Transformer, DROPPED, **keys), build_head(Transformer, DROPPED), features()
    assert head.positions.shape == (1, 12, 16)  # none for prefix tokens, which would never be trained
    plain.load_state_dict({name: weight for name, weight in head.state_dict().items() if name != "positions"})
    plain.positions.zero_()
    kept = torch.tensor([[0, 2, 5], [1, 7, 11]])
    dropped = Features(inputs.tokens_BND[:, :3], (3, 4), kept, inputs.prefix_BKD)
    filled = (head.mask_token + head.positions).expand(2, -1, -1).clone()
    for sample in range(2):
        filled[sample, kept[sample]] = head.embed(dropped.tokens_BND[sample])
    plain._fill = lambda tokens_BND, kept_BN: filled
    torch.testing.assert_close(head(dropped).map_BCHW, plain(dropped).map_BCHW, rtol=0, atol=1e-12)


def test_transformer_without_embedding_takes_tokens_of_its_own_width():
    head = build_head(Transformer, replace(DROPPED, width=16), embed=False)
    assert [name for name, _ in head.named_parameters() if name.startswith("embed")] == []
    with pytest.raises(ValueError, match=r"HEAD\.embed false: HEAD\.width 16 must be the width .* tokens, 12"):
        build_head(Transformer, DROPPED, embed=False)


def test_transformer_refuses_positions_of_hidden_tokens_where_none_is_dropped():
    with pytest.raises(
        ValueError, match=r"HEAD\.positions_of hidden needs .*ENCODER\.hidden drop, or HEAD\.positions_of all"
    ):
        build_head(Transformer, DENSE, positions_of="hidden")


SEEDS = {"norm": False, "norm_eps": 1e-3, "positions": "learned", "linear_init": "pytorch", "init_std": 1.0}


@pytest.mark.parametrize("name", ["transformer", "cross_attention"])
def test_decoder_has_the_positions_norms_and_initial_weights_that_are_asked_for(name):
    head = build_head(Head.named(name), DROPPED, width=64, **SEEDS)
    prefix = DROPPED.num_prefix if name == "transformer" else 0
    assert head.state_dict()["positions"].shape == (1, prefix + 12, 64)
    for weight in (head.positions, head.mask_token):
        assert weight.std().item() == pytest.approx(1, rel=0.25)
    norms = [module.eps for module in head.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms == [1e-3] * 2  # of its one block
    for linear in (module for module in head.modules() if isinstance(module, torch.nn.Linear)):
        bound = linear.in_features**-0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.any()


@pytest.mark.parametrize("name", ["transformer", "cross_attention"])
def test_decoder_with_learned_positions_trains_each_parameter(name):
    head = build_head(Head.named(name), DROPPED, **SEEDS)
    kept = torch.tensor([[0, 2, 5], [1, 7, 11]])
    inputs = features()
    output = head(Features(inputs.tokens_BND[:, :3], (3, 4), kept, inputs.prefix_BKD)).map_BCHW
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, weight in head.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_transformer_refuses_heads_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match=r"HEAD\.heads 5 does not divide HEAD\.width 16"):
        build_head(Transformer, heads=5)


@torch.no_grad()
@pytest.mark.parametrize("part", [Transformer, CrossAttention])
def test_output_of_cosines_is_that_of_the_angle_between_a_token_and_each_vector(part):
    """Of whatever length both are; without a bias."""
    with pytest.raises(ValueError, match=r"use HEAD\.output linear"):
        build_head(part, output="cosine")
    head, layers = build_head(part, target=replace(TARGET, distribution=True), output="cosine"), []
    head.predict.register_forward_hook(lambda layer, inputs, output: layers.append((inputs[0], output)))
    for layer in head.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.weight.mul_(3.0)
    head(features())
    tokens, outputs = (each.flatten(0, 1).tolist() for each in layers[0])
    vectors = head.predict.weight.tolist()
    assert [name for name, _ in head.predict.named_parameters()] == ["weight"]
    for token, output in zip(tokens, outputs, strict=True):
        for vector, cosine in zip(vectors, output, strict=True):
            product = math.fsum(x * y for x, y in zip(token, vector, strict=True))
            assert cosine == pytest.approx(product / math.hypot(*token) / math.hypot(*vector), abs=1e-12)
