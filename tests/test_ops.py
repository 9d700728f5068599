import math

import pytest
import timm.layers
import torch
from small_models import CPU, IMAGE, images
from timm.layers import Attention

from mim.encoders import Swin, ViT
from mim.ops.attention import choose_attention
from mim.ops.checks import at_least
from mim.ops.patches import patchify, unpatchify
from mim.ops.positions import sincos_table
from mim.ops.seeding import derive_seed, generator_for

CUDA = torch.device("cuda")


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_patchify_orders_a_patch_by_row_column_channel(channels):
    patch, grid = 4, (2, 3)
    image = torch.randn(2, channels, 8, 12)
    patches = patchify(image, patch)
    assert patches.shape == (2, 6, 16 * channels)
    for token in range(6):
        top, left = token // grid[1] * patch, token % grid[1] * patch
        place = 0
        for p in range(patch):
            for q in range(patch):
                for c in range(channels):
                    assert torch.equal(patches[:, token, place], image[:, c, top + p, left + q])
                    place += 1


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 4, 16, 48), (3, 1, 40, 8)])
def test_unpatchify_inverts_patchify(shape):
    image = torch.randn(shape)
    grid = (shape[2] // 8, shape[3] // 8)
    assert torch.equal(unpatchify(patchify(image, 8), 8, grid), image)
    patches = torch.randn(shape[0], grid[0] * grid[1], 64 * shape[1])
    assert torch.equal(patchify(unpatchify(patches, 8, grid), 8), patches)


# ---------------------------------------------------------------- positions


def slow_table(grid, width, num_prefix):
    """One number at a time, from the formula in util/pos_embed.py of MAE."""
    rows = [[0.0] * width for _ in range(num_prefix)]
    quarter = width // 4
    for y in range(grid[0]):
        for x in range(grid[1]):
            row = []
            for position in (x, y):
                for wave in (math.sin, math.cos):
                    row += [wave(position / 10000 ** (i / quarter)) for i in range(quarter)]
            rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (6, 2)])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_sincos_table_equals_the_formula_token_by_token(grid, num_prefix):
    table = sincos_table(grid, 24, num_prefix)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[0], slow_table(grid, 24, num_prefix), rtol=0, atol=1e-7)


def test_sincos_table_first_half_is_the_column_and_second_half_the_row():
    table = sincos_table((3, 5), 16)[0].reshape(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    assert not torch.equal(table[:, 0, :8], table[:, 1, :8])
    assert not torch.equal(table[0, :, 8:], table[1, :, 8:])


@pytest.mark.parametrize("width", [2, 6, 18, 770])
def test_sincos_table_refuses_a_width_that_four_does_not_divide(width):
    with pytest.raises(ValueError, match=f"4 divides, not {width}"):
        sincos_table((2, 2), width)


# ---------------------------------------------------------------- seeds


def test_derive_seed_is_stable_over_releases():
    assert derive_seed(0, "mask", 0) == 3684084560314004959
    assert derive_seed(7, "order", 3, 5) == 7916986876760389296


def test_derive_seed_differs_for_neighbouring_seeds_purposes_and_places():
    purposes = ("mask", "order", "augment")
    places = [(i, j) for i in range(20) for j in range(20)]
    seeds = [derive_seed(seed, purpose, *place) for seed in range(3) for purpose in purposes for place in places]
    assert len(set(seeds)) == 3 * 3 * 20 * 20
    assert len({derive_seed(0, "mask", step) for step in range(3000)}) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derive_seed_of_neighbouring_steps_gives_unrelated_streams():
    first, second = (torch.rand(5000, generator=generator_for(CPU, 0, "mask", step)) for step in (0, 1))
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(5000)


def test_generator_for_one_place_repeats_itself():
    first, second = (torch.rand(9, generator=generator_for(CPU, 5, "mask", 8)) for _ in range(2))
    assert torch.equal(first, second)


# ---------------------------------------------------------------- attention


def kernels(model):
    return [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]


def encoders():
    torch.manual_seed(0)
    return [
        ViT(IMAGE, patch=8, width=16, depth=2, heads=2),
        Swin(IMAGE, patch=4, width=8, depths=(2, 2), heads=(2, 2), window=4),
    ]


@pytest.mark.parametrize("encoder", encoders(), ids=["vit", "swin"])
def test_choose_attention_sets_every_module_and_leaves_timms_switch_alone(encoder):
    switch = timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)
    for device, fused in ((CPU, False), (CUDA, True), (CPU, False)):
        choose_attention(encoder, device)
        assert len(kernels(encoder)) == len(encoder.blocks())
        assert all(kernel is fused for kernel in kernels(encoder))
        assert (timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)) == switch
        assert Attention(8, 2).fused_attn is switch[0]


@pytest.mark.parametrize("encoder", encoders(), ids=["vit", "swin"])
def test_choose_attention_does_not_change_what_is_computed(encoder):
    encoder.double()
    img = images(dtype=torch.float64)
    outputs, gradients = [], []
    for device in (CPU, CUDA):
        choose_attention(encoder, device)
        encoder.zero_grad()
        tokens = encoder(img).tokens_BND
        tokens.square().mean().backward()
        outputs.append(tokens.detach())
        gradients.append(encoder.backbone.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- checks


def test_at_least_names_the_first_key_below_the_limit():
    at_least("TRAIN", 1, epochs=1, steps=5)
    with pytest.raises(ValueError, match=r"TRAIN\.steps is 0: it must be at least 1"):
        at_least("TRAIN", 1, epochs=1, steps=0)
