import math
from contextlib import nullcontext

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline
from small_models import CPU, IMAGE, generator, images
from timm.layers import Attention
from torch._dynamo.testing import CompileCounter

from mim.encoders import Swin, ViT
from mim.io.checks import above_zero, at_least, shares
from mim.ops.attention import attention_kernels, choose_attention
from mim.ops.patches import patchify, unpatchify
from mim.ops.positions import resize_bias_table, resize_positions, sincos_table
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
        entry = 0
        for p in range(patch):
            for q in range(patch):
                for c in range(channels):
                    assert torch.equal(patches[:, token, entry], image[:, c, top + p, left + q])
                    entry += 1


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


# ---------------------------------------------------------------- positions of another size


def position_table(rows, width=8, seed=0):
    return torch.randn(1, rows, width, generator=generator(seed))


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("grid", "image_size"), [((14, 14), (224, 224)), ((14, 14), None), ((2, 8), (32, 128)), ((6, 4), (96, 64))]
)
def test_resize_positions_leaves_a_table_of_the_same_grid_untouched(grid, image_size, num_prefix):
    table = position_table(num_prefix + math.prod(grid))
    assert resize_positions(table, grid, image_size, num_prefix) is table


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("old", "new", "image_size"),
    [
        ((14, 14), (24, 24), None),
        ((14, 14), (24, 24), (224, 224)),
        ((14, 14), (7, 7), (224, 224)),  # antialiasing would show here
        ((14, 14), (10, 20), None),
        ((4, 8), (8, 8), (32, 64)),
        ((8, 4), (4, 8), (64, 32)),
        ((2, 8), (4, 4), (32, 128)),  # as many rows, and yet another grid
        ((3, 5), (6, 4), (48, 80)),
        ((5, 3), (5, 6), (250, 150)),
    ],
)
def test_resize_positions_equals_pytorchs_bicubic_and_keeps_prefix_rows(old, new, image_size, num_prefix):
    table = position_table(num_prefix + math.prod(old))
    resized = resize_positions(table, new, image_size, num_prefix)
    map_1DHW = table[:, num_prefix:].reshape(1, *old, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(map_1DHW, size=new, mode="bicubic", align_corners=False, antialias=False)
    assert torch.equal(resized[:, :num_prefix], table[:, :num_prefix])
    torch.testing.assert_close(resized[:, num_prefix:], expected.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_resize_positions_keeps_the_type(dtype):
    table = position_table(17).to(dtype)
    resized = resize_positions(table, (6, 6), None, 1)
    assert resized.dtype == dtype
    torch.testing.assert_close(resized.float(), resize_positions(table.float(), (6, 6), None, 1), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("rows", "image_size"),
    [(32, None), (32, (32, 32)), (17, None), (36, (32, 64)), (15, (80, 40)), (1, (32, 64)), (0, None)],
)
def test_resize_positions_leaves_a_table_that_fills_no_such_grid(rows, image_size):
    table = position_table(rows + 1)
    assert resize_positions(table, (4, 4), image_size, 1) is table


# ---------------------------------------------------------------- biases of another window


def bias_table(window, heads=3, seed=0):
    return torch.randn(math.prod(2 * side - 1 for side in window), heads, generator=generator(seed))


def as_map(table_LH, window):
    """(rows, columns, heads), from minus the window's reach to plus it."""
    return table_LH.reshape(2 * window[0] - 1, 2 * window[1] - 1, -1)


def geometric_distances(old, new):
    """SimMIM, utils.py, remap_pretrained_keys_swin: places of the old entries; q found by halving, as there."""
    low, high = 1.01, 1.5
    while high - low > 1e-9:
        q = (low + high) / 2
        if (1 - q ** (old - 1)) / (1 - q) > new - 1:
            high = q
        else:
            low = q
    distances = np.cumsum([q**step for step in range(old - 1)])
    return np.concatenate([-distances[::-1], [0.0], distances])


def slow_bias_table(table_LH, old, new):
    """A cubic spline along one axis, then along the other; beyond the last old entry, the value there."""
    values = as_map(table_LH, old).double().numpy()
    for axis in range(2):
        positions = geometric_distances(old[axis], new[axis])
        at = np.clip(np.arange(1 - new[axis], new[axis]), positions[0], positions[-1])
        values = CubicSpline(positions, values, axis=axis)(at)
    return torch.from_numpy(values).flatten(0, 1).to(table_LH.dtype)


WINDOWS = [
    ((6, 6), (7, 7)),
    ((7, 7), (12, 12)),
    ((12, 12), (7, 7)),
    ((7, 7), (6, 6)),
    ((6, 6), (24, 24)),  # farther than the progression reaches
    ((4, 7), (7, 12)),
    ((7, 4), (4, 4)),
]


@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_resize_bias_table_equals_simmims_with_a_spline_of_the_tests_own(old, new):
    table = bias_table(old)
    resized = resize_bias_table(table, new, old)
    assert resized.shape == (math.prod(2 * side - 1 for side in new), 3)
    assert resized.dtype == torch.float32
    torch.testing.assert_close(resized, slow_bias_table(table, old, new), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_resize_bias_table_keeps_what_is_near(old, new):
    """Distances of 0 and 1 are in every window, and mean the same."""
    table = bias_table(old)
    before, after = as_map(table, old), as_map(resize_bias_table(table, new, old), new)
    middle = [[slice(side - 2, side + 1) for side in window] for window in (old, new)]
    torch.testing.assert_close(after[*middle[1]], before[*middle[0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((6, 6), (7, 7)), ((7, 7), (12, 12)), ((4, 7), (7, 12))])
def test_resize_bias_table_of_a_larger_window_spans_it_from_corner_to_corner(old, new):
    table = bias_table(old)
    before, after = as_map(table, old), as_map(resize_bias_table(table, new, old), new)
    old_y, old_x, new_y, new_x = ([0, side - 1, -1] for side in (*old, *new))
    torch.testing.assert_close(after[new_y][:, new_x], before[old_y][:, old_x], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_resize_bias_table_keeps_constants_and_symmetries_and_does_not_mix_heads(old, new):
    constant = torch.full_like(bias_table(old), 0.7)
    torch.testing.assert_close(
        resize_bias_table(constant, new, old), torch.full((), 0.7).expand(len(bias_table(new)), 3)
    )
    table = bias_table(old)
    for axes in ((0,), (1,), (0, 1)):
        mirrored = as_map(table, old) + as_map(table, old).flip(axes)
        resized = as_map(resize_bias_table(mirrored.flatten(0, 1), new, old), new)
        torch.testing.assert_close(resized, resized.flip(axes), rtol=0, atol=1e-5)
    each = [resize_bias_table(table[:, head : head + 1], new, old) for head in range(3)]
    assert torch.equal(resize_bias_table(table, new, old), torch.cat(each, dim=1))


def test_resize_bias_table_of_a_transposed_table_is_the_transposed_result():
    table = as_map(bias_table((6, 6)), (6, 6))
    plain, turned = (resize_bias_table(t.flatten(0, 1), (9, 9), None) for t in (table, table.transpose(0, 1)))
    torch.testing.assert_close(as_map(plain, (9, 9)).transpose(0, 1), as_map(turned, (9, 9)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "grid"), [((7, 7), None), ((7, 7), (14, 28)), ((2, 7), (2, 14)), ((4, 3), (4, 3))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resize_bias_table_leaves_a_table_of_the_same_window_untouched(window, grid, dtype):
    table = bias_table(window).to(dtype)
    assert resize_bias_table(table, window, grid) is table


@pytest.mark.parametrize(
    ("rows", "grid"),
    [(50, None), (15, None), (13 * 13, (2, 14)), (1, None), (1, (1, 1)), (5, (3, 1)), (13, (1, 14)), (0, None)],
)
def test_resize_bias_table_leaves_a_table_that_fits_no_window_or_one_of_a_single_token(rows, grid):
    table = torch.randn(rows, 2)
    assert resize_bias_table(table, (4, 4), grid) is table


def test_resize_bias_table_finds_a_window_that_its_grid_cut_short():
    """A window of 7 on a grid of 4 x 14 is one of 4 x 7; of a square window's table there is no doubt."""
    table = bias_table((4, 7))
    assert len(resize_bias_table(table, (7, 7), (4, 14))) == 13 * 13
    torch.testing.assert_close(
        resize_bias_table(table, (7, 7), (4, 14)), slow_bias_table(table, (4, 7), (7, 7)), rtol=0, atol=1e-5
    )
    square = bias_table((6, 6))
    assert torch.equal(resize_bias_table(square, (7, 7), (24, 12)), resize_bias_table(square, (7, 7), None))


def test_resize_bias_table_takes_windows_too_small_for_a_cubic():
    """Three old entries along an axis lie on one parabola."""
    table = as_map(bias_table((2, 2)), (2, 2))
    resized = as_map(resize_bias_table(table.flatten(0, 1), (3, 3), None), (3, 3))
    torch.testing.assert_close(resized[1:4, 1:4], table, rtol=0, atol=1e-6)
    assert resized.isfinite().all()


# ---------------------------------------------------------------- seeds


def test_derive_seed_is_stable_over_releases():
    assert derive_seed(0, "mask", 0) == 3684084560314004959
    assert derive_seed(7, "order", 3, 5) == 7916986876760389296


def test_derive_seed_differs_for_neighbouring_seeds_purposes_and_places():
    purposes = ("mask", "order", "augment")
    pairs = [(i, j) for i in range(20) for j in range(20)]
    seeds = [derive_seed(seed, purpose, *pair) for seed in range(3) for purpose in purposes for pair in pairs]
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


def block_for(device):
    torch.manual_seed(0)
    module = Attention(16, 4, qkv_bias=True)
    choose_attention(module, device)
    return module


LARGE, SMALL = (400, 80, 16), (4, 80, 16)  # tokens whose scores take 41 MB and 0.4 MB in float32


@pytest.fixture
def fused_calls(monkeypatch):
    """The calls of PyTorch's fused kernel."""
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv, **keys: calls.append(1) or kernel(*qkv, **keys))
    return calls


def test_attention_on_a_cpu_fuses_calls_in_float32_with_many_scores(fused_calls):
    module = block_for(CPU)
    for size, calls in ((SMALL, 0), (LARGE, 1), (SMALL, 1)):
        module(torch.randn(size))
        assert len(fused_calls) == calls
        assert module.fused_attn is False
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(LARGE))
    module.double()(torch.randn(LARGE, dtype=torch.float64))
    assert len(fused_calls) == 1
    choose_attention(module.float(), CPU)
    assert len(module._forward_pre_hooks) == len(module._forward_hooks) == 1
    on_gpu = block_for(CUDA)
    assert not on_gpu._forward_pre_hooks  # which would cost time in each call
    on_gpu(torch.randn(SMALL))  # the choice of a GPU is not touched
    assert len(fused_calls) == 2
    assert on_gpu.fused_attn is True


def test_attention_that_is_fused_by_size_computes_the_same(fused_calls):
    module, tokens_BND = block_for(CPU), torch.randn(LARGE)
    outputs, gradients = [], []
    for fused in (None, False):
        with nullcontext() if fused is None else attention_kernels([module], fused=fused):
            module.zero_grad()
            mixed_BND = module(tokens_BND)
            mixed_BND.square().mean().backward()
        outputs.append(mixed_BND.detach())
        gradients.append(module.qkv.weight.grad.clone())
    assert len(fused_calls) == 1
    assert module.by_size
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_attention_that_failed_is_explicit_again():
    module = block_for(CPU)
    module.proj = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        module(torch.randn(LARGE))
    assert module.fused_attn is False


def test_compiled_attention_compiles_once_for_each_size_whatever_eager_calls_choose():
    module, counter = block_for(CPU), CompileCounter()
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=counter)
    for size in (SMALL, LARGE, LARGE, SMALL):
        compiled(torch.randn(size))
        module(torch.randn(LARGE))
    assert counter.frame_count == 2


# ---------------------------------------------------------------- checks


def test_at_least_names_the_first_key_below_the_limit():
    at_least("TRAIN", 1, epochs=1, steps=5)
    with pytest.raises(ValueError, match=r"TRAIN\.steps is 0: it must be at least 1"):
        at_least("TRAIN", 1, epochs=1, steps=0)


@pytest.mark.parametrize("value", [0.0, -1e-6, float("nan")])
def test_above_zero_names_the_first_key_that_is_not(value):
    above_zero("ENCODER", norm_eps=1e-12)
    with pytest.raises(ValueError, match=rf"ENCODER\.init_std is {value}: it must be above 0"):
        above_zero("ENCODER", norm_eps=1e-6, init_std=value)


def test_shares_names_the_first_key_that_is_none():
    shares("LABELS", share=1.0, other=1e-9)
    for value in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValueError, match=rf"LABELS\.other is {value}: it is a share, above 0 and at most 1"):
            shares("LABELS", share=0.5, other=value)
