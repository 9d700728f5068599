"""Operations of convolutions, attention and products equal their formulas, also backward and in groups.

Shapes: B batch, C channels, H heads, N queries, M keys, D width.
"""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from mim.cost.formulas import operation_counter

aten = torch.ops.aten
B, H, N, M, D = 2, 3, 5, 7, 8


def operations(run) -> int:
    with operation_counter() as counter:
        run()
    return counter.get_total_flops()


def meta(*shape: int, **settings) -> torch.Tensor:
    return torch.empty(shape, device="meta", **settings)


# ---------------------------------------------------------------- convolutions

CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 12, 3),
    "one dimension, with stride": nn.Conv1d(6, 12, 3, stride=2),
    "three dimensions, in groups": nn.Conv3d(6, 12, (3, 2, 1), groups=3),
    "patches": nn.Conv2d(6, 12, 4, stride=4),
    "groups": nn.Conv2d(6, 12, 3, padding=1, groups=3),
    "groups and stride": nn.Conv2d(6, 12, 3, stride=2, groups=2),
    "a channel a group": nn.Conv2d(6, 6, 5, padding="same", groups=6),
    "a channel a group, doubled": nn.Conv2d(6, 12, 3, dilation=2, groups=6, bias=False),
    "transposed": nn.ConvTranspose2d(6, 12, 3),
    "transposed, with stride": nn.ConvTranspose2d(6, 12, 3, stride=2, output_padding=1),
    "transposed, in groups": nn.ConvTranspose2d(6, 12, 2, stride=2, groups=3),
    "transposed, a channel a group": nn.ConvTranspose1d(6, 6, 4, stride=2, groups=6),
}


@pytest.mark.parametrize("what", CONVOLUTIONS)
def test_convolutions_cost_as_much_for_each_gradient_as_forward(what):
    """Each weight meets each position of the output, of the input where it is transposed."""
    layer = CONVOLUTIONS[what].to("meta")
    img = meta(B, 6, *(16, 17, 18)[: layer.weight.ndim - 2])
    positions = layer(img) if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else img
    once = 2 * B * prod(positions.shape[2:]) * layer.weight.numel()
    assert operations(lambda: layer(img)) == once
    assert operations(lambda: layer(img).sum().backward()) == 2 * once  # the first layer: its input needs no gradient
    assert operations(lambda: layer(img.clone().requires_grad_()).sum().backward()) == 3 * once
    layer.weight.requires_grad_(False)  # frozen, but for its bias
    assert operations(lambda: layer(img.clone().requires_grad_()).sum().backward()) == 2 * once
    layer.weight.requires_grad_(True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_cost_as_much_as_the_matrix_products_that_they_are(groups):
    layer, img = nn.Conv2d(4, 8, 3, stride=2, groups=groups), torch.randn(B, 4, 9, 11, requires_grad=True)

    def as_products() -> torch.Tensor:
        columns = F.unfold(img, 3, stride=2).unflatten(1, (groups, -1)).flatten(0, 1)
        weight = layer.weight.unflatten(0, (groups, -1)).flatten(2)
        return (weight.repeat(B, 1, 1) @ columns).unflatten(0, (B, groups)).flatten(1, 2)

    torch.testing.assert_close(as_products() + layer.bias[:, None], layer(img).flatten(2))
    assert operations(lambda: layer(img).sum().backward()) == operations(lambda: as_products().sum().backward())


def test_convnext_block_costs_three_times_forward():
    width, side = 96, 16
    block, img = ConvNeXtBlock(width).to("meta"), meta(B, width, side, side, requires_grad=True)
    forward = 2 * B * side**2 * (49 * width + 8 * width**2)  # a 7 x 7 window a channel, and an MLP of ratio 4
    assert operations(lambda: block(img)) == forward
    assert operations(lambda: block(img).sum().backward()) == 3 * forward


# ---------------------------------------------------------------- attention

SCORES_AND_SUM = 2 * (2 * B * H * N * M * D)


def rows(count: int) -> torch.Tensor:
    return meta(B, H, count, D, requires_grad=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_costs_two_products_forward_and_four_backward_on_any_device(device, masked):
    query, key, value = (torch.ones(B, H, n, D, device=device, requires_grad=True) for n in (N, M, M))
    bias = torch.zeros(1, H, N, M, device=device) if masked else None

    def run() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    assert operations(run) == SCORES_AND_SUM
    assert operations(lambda: run().sum().backward()) == 3 * SCORES_AND_SUM


KERNELS = {
    "flash": (aten._scaled_dot_product_flash_attention, ()),
    "efficient": (aten._scaled_dot_product_efficient_attention, (None, True)),
    "cudnn": (aten._scaled_dot_product_cudnn_attention, (None, True)),
    "overrideable": (aten._scaled_dot_product_fused_attention_overrideable, ()),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_costs_the_same_with_every_fused_kernel(kernel):
    """The kernels of GPUs, on the meta device, where nothing is computed."""
    function, others = KERNELS[kernel]
    query, key, value = rows(N), rows(M), rows(M)
    assert operations(lambda: function(query, key, value, *others)) == SCORES_AND_SUM
    assert operations(lambda: function(query, key, value, *others)[0].sum().backward()) == 3 * SCORES_AND_SUM


def test_attention_costs_the_same_where_heads_share_their_keys():
    query, key, value = rows(N), meta(B, 1, M, D), meta(B, 1, M, D)
    assert operations(lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True)) == SCORES_AND_SUM
    assert operations(lambda: aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)) == SCORES_AND_SUM


# ---------------------------------------------------------------- products

SCALE = torch.ones((), device="meta")
PRODUCTS = {  # of matrices (N, M) and (M, D), B times where there are several
    "linear": (lambda a, b: F.linear(meta(B, N, M), meta(D, M), meta(D)), B),
    "matmul": (lambda a, b: a @ b, 1),
    "matmul of several": (lambda a, b: a.repeat(B, 1, 1) @ b, B),
    "einsum": (lambda a, b: torch.einsum("bnm,md->bnd", a.repeat(B, 1, 1), b), B),
    "einsum of several": (lambda a, b: torch.einsum("bnm,bmd->bnd", a.repeat(B, 1, 1), b.repeat(B, 1, 1)), B),
    "addmm": (lambda a, b: torch.addmm(meta(N, D), a, b), 1),
    "addmm in place": (lambda a, b: meta(N, D).addmm_(a, b), 1),
    "baddbmm": (lambda a, b: torch.baddbmm(meta(B, N, D), a.repeat(B, 1, 1), b.repeat(B, 1, 1)), B),
    "baddbmm in place": (lambda a, b: meta(B, N, D).baddbmm_(a.repeat(B, 1, 1), b.repeat(B, 1, 1)), B),
    "addbmm": (lambda a, b: torch.addbmm(meta(N, D), a.repeat(B, 1, 1), b.repeat(B, 1, 1)), B),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_cost_two_operations_a_multiply_add(product):
    run, several = PRODUCTS[product]
    assert operations(lambda: run(meta(N, M), meta(M, D))) == several * 2 * N * M * D


def test_products_of_vectors_and_of_low_precision_count_too():
    matrix, vector = meta(N, M), meta(M)
    assert operations(lambda: matrix @ vector) == operations(lambda: torch.addmv(meta(N), matrix, vector)) == 2 * N * M
    assert operations(lambda: vector @ vector) == operations(lambda: torch.vdot(vector, vector)) == 2 * M
    eight, columns = meta(32, 16, dtype=torch.float8_e4m3fn), meta(48, 16, dtype=torch.float8_e4m3fn).t()
    assert (
        operations(lambda: torch._scaled_mm(eight, columns, SCALE, SCALE, out_dtype=torch.bfloat16)) == 2 * 32 * 16 * 48
    )
    whole = (meta(32, 16, dtype=torch.int8), meta(16, 48, dtype=torch.int8))
    assert operations(lambda: torch._int_mm(*whole)) == 2 * 32 * 16 * 48
