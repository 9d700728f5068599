"""The unet head: what it computes by its published formulas, its initial weights, and what it refuses.

Shapes: B batch, D width, h w entries of a map high and wide, N entries.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from small_models import assemble, generator, images, sampled, small
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from mim.cost.model_summary import summarise_model
from mim.heads import UNet
from mim.structures import EncoderSpec, Features, StageSpec, TargetSpec

STAGES = (StageSpec(5, 2), StageSpec(6, 4), StageSpec(7, 4), StageSpec(24, 8))  # of stride 4 the last is taken
DROPPED = EncoderSpec(width=24, stride=8, patch=8, grid=(2, 3), drops_hidden=True, stages=STAGES)
DENSE = replace(DROPPED, drops_hidden=False)
PIXELS = TargetSpec(channels=3, stride=1)
KEPT = torch.tensor([[0, 2, 4], [1, 4, 5]])


def build(spec=DROPPED, target=PIXELS, **keys) -> UNet:
    torch.manual_seed(1)
    head = small(UNet, spec, target, **{"width": 16, "finest_stride": 2, **keys}).double()
    with torch.no_grad():  # norms, embeddings and biases have an effect
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(2), dtype=torch.float64))
    return head


def features(spec=DROPPED, beneath: float = 0.0) -> Features:
    """Features of two images; `beneath` is the value of maps at dropped places."""
    chance = generator(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    kept = KEPT if spec.drops_hidden else None
    maps = [noise(2, spec.stages[stage].width, 16 // spec.stages[stage].stride, 24 // spec.stages[stage].stride)
            for stage in UNet(spec, PIXELS, width=16, finest_stride=2).stages]  # fmt: skip
    if kept is not None:
        maps = [torch.where(seen(map_BDhw.shape[2] // 2), map_BDhw, beneath) for map_BDhw in maps]
    return Features(noise(2, 3 if kept is not None else 6, spec.width), spec.grid, kept, stages_BDhw=tuple(maps))


def seen(factor: int) -> torch.Tensor:
    """Visible places of the grid, finer by a factor, (B, 1, h, w) bool."""
    cells_Bhw = torch.zeros(2, 6, dtype=torch.bool).scatter(1, KEPT, True).view(2, 1, 2, 3)
    return cells_Bhw.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


# ---------------------------------------------------------------- what it computes


def normalised(x, mean, variance, norm, eps):
    """Over dimension 1, with the weights of a norm."""
    shape = (1, -1, 1, 1)
    return (x - mean) / (variance + eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def filled(part, map_BDhw, seen_B1hw, kind):
    """A map with the embedding in hidden places, at the decoder's width."""
    if kind == "layer":
        mean, variance = map_BDhw.mean(1, keepdim=True), map_BDhw.var(1, keepdim=True, correction=0)
        map_BDhw = normalised(map_BDhw, mean, variance, part.norm, 1e-6)
    elif kind == "batch":
        places_ND = map_BDhw.permute(0, 2, 3, 1)[seen_B1hw[:, 0]]  # of all images together
        mean, variance = (value.view(1, -1, 1, 1) for value in (places_ND.mean(0), places_ND.var(0, correction=0)))
        map_BDhw = normalised(map_BDhw, mean, variance, part.norm, 1e-5)
    if part.mask_token is not None:
        map_BDhw = torch.where(seen_B1hw, map_BDhw, part.mask_token.view(1, -1, 1, 1))
    return F.conv2d(map_BDhw, part.proj.weight, part.proj.bias, padding=part.proj.weight.shape[2] // 2)


def up(block, x):
    """One block of SparK's decoder; its norms see every place of the batch."""

    def batch_norm(x, norm):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
        return normalised(x, mean, variance, norm, 1e-5)

    x = F.conv_transpose2d(x, block.up.weight, block.up.bias, stride=2, padding=1)
    x = batch_norm(F.conv2d(x, block.conv1.weight, padding=1), block.norm1).clamp(0, 6)
    return batch_norm(F.conv2d(x, block.conv2.weight, padding=1), block.norm2)


@pytest.mark.parametrize("kind", ["layer", "batch", "none"])
@pytest.mark.parametrize("spec", [DROPPED, DENSE], ids=["drop", "replace"])
@torch.no_grad()
def test_unet_equals_sparks_decoder_from_coarse_to_fine(spec, kind):
    head, inputs = build(spec, densify_norm=kind).train(), features(spec)
    assert head.stages == (2, 0)  # strides 4 and 2
    dense_BND = inputs.tokens_BND
    if spec.drops_hidden:
        dense_BND = torch.zeros(2, 6, 24, dtype=torch.float64)
        for image in range(2):
            dense_BND[image, KEPT[image]] = inputs.tokens_BND[image]
    coarse_BDhw = dense_BND.transpose(1, 2).reshape(2, 24, 2, 3)
    everything = [torch.ones_like(seen(factor)) for factor in (1, 2, 4)]
    places = [seen(factor) for factor in (1, 2, 4)] if spec.drops_hidden else everything
    x = 0
    for level, (map_BDhw, seen_B1hw) in enumerate(zip((coarse_BDhw, *inputs.stages_BDhw), places, strict=True)):
        x = up(head.layers[level], x + filled(head.densify[str(level)], map_BDhw, seen_B1hw, kind))
    expected = F.conv2d(x, head.predict.weight, head.predict.bias)
    assert expected.shape == (2, 3, 16, 24)
    torch.testing.assert_close(head(inputs).map_BCHW, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_unet_of_fewer_blocks_predicts_by_a_linear_map_of_each_place():
    head, inputs = build(depth=1), features(replace(DROPPED, stages=()))
    assert head.stages == ()
    seen_B1hw, dense_BND = seen(1), torch.zeros(2, 6, 24, dtype=torch.float64)
    dense_BND = dense_BND.scatter(1, KEPT[..., None].expand(-1, -1, 24), inputs.tokens_BND)
    x = filled(head.densify["0"], dense_BND.transpose(1, 2).reshape(2, 24, 2, 3), seen_B1hw, "layer")
    expected = torch.pixel_shuffle(F.conv2d(up(head.layers[0], x), head.predict.weight, head.predict.bias), 4)
    torch.testing.assert_close(head(inputs).map_BCHW, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["layer", "batch"])
@torch.no_grad()
def test_unet_reads_nothing_at_dropped_places(kind):
    head = build(densify_norm=kind).train()
    expected = head(features()).map_BCHW
    assert torch.equal(head(features(beneath=float("nan"))).map_BCHW, expected)
    everything = torch.arange(6).expand(2, -1)
    whole = replace(features(DENSE), kept_BN=None)
    if kind == "layer":  # without a mask nothing is filled
        assert torch.equal(head(whole).map_BCHW, head(replace(whole, kept_BN=everything)).map_BCHW)


# ---------------------------------------------------------------- how it is built


@pytest.mark.parametrize(
    ("stride", "target", "depth", "side"), [(16, 1, 4, 1), (16, 4, 2, 1), (12, 1, 2, 3), (8, 8, 0, 1)]
)
def test_unet_has_as_many_blocks_as_lead_to_the_targets_stride(stride, target, depth, side):
    """Also behind an encoder of one map, as a plain ViT is."""
    spec = EncoderSpec(24, stride, stride, (2, 3), drops_hidden=depth > 0, stages=(StageSpec(24, stride),) * 3)
    head = UNet(spec, TargetSpec(3, target), width=16)
    assert (len(head.layers), len(head.blocks()), head.stages) == (depth, depth, ())
    assert (head.predict.in_channels, head.predict.out_channels) == (16 // 2**depth, 3 * side**2)
    kept = torch.tensor([[0, 1], [3, 5]]) if spec.drops_hidden else None
    inputs = Features(torch.randn(2, 6 if kept is None else 2, 24), (2, 3), kept)
    assert head(inputs).map_BCHW.shape == (2, 3, 2 * stride // target, 3 * stride // target)


def published(widths, **keys) -> UNet:
    stages = tuple(map(StageSpec, widths, (4, 8, 16, 32)))
    return UNet(EncoderSpec(widths[-1], 32, 32, (7, 7), True, stages=stages), PIXELS, **keys)


def test_unet_is_sized_as_published():
    """SparK's decoder of ResNet-50 and ConvNeXt-S: their widths, and 768 channels that each block halves."""
    with torch.device("meta"):
        head = published((256, 512, 1024, 2048), densify_norm="batch")
        assert isinstance(published((96, 192, 384, 768)).densify["0"].proj, torch.nn.Identity)
    channels = [768 // 2**level for level in range(6)]
    blocks = sum(16 * d**2 + d + 9 * d**2 + 2 * d + 9 * d * n + 2 * n for d, n in pairwise(channels))
    decoder = [*head.layers.parameters(), *head.predict.parameters()]
    assert sum(parameter.numel() for parameter in decoder) == blocks + 3 * (24 + 1)
    fills = [head.densify[str(level)] for level in range(4)]
    assert [part.mask_token.numel() for part in fills] == [2048, 1024, 512, 256]
    shapes = [(768, 2048, 1, 1), (384, 1024, 3, 3), (192, 512, 3, 3), (96, 256, 3, 3)]
    assert [tuple(part.proj.weight.shape) for part in fills] == shapes


def test_unet_leaves_maps_of_the_stem_out():
    assert build(finest_stride=2).stages == (2, 0)
    assert UNet(DROPPED, PIXELS, width=16).stages == (2,)  # as published, of stride 4 and coarser
    assert build(finest_stride=5).stages == ()


def test_unet_begins_as_published():
    torch.manual_seed(0)
    head = published((16, 16, 16, 256), width=256)
    for part in head.densify.values():
        assert 0.01 < part.mask_token.abs().max() <= 0.02
    for block in head.layers[:3]:
        assert block.up.weight.std().item() == pytest.approx(math.sqrt(2 / (len(block.up.weight) * 16)), rel=0.05)
        assert not block.up.bias.any()
        for conv in (block.conv1, block.conv2):
            assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_unet_has_embeddings_only_where_places_are_dropped():
    assert not [name for name, _ in build(DENSE).named_parameters() if "mask_token" in name]
    names = [name for name, _ in build().named_parameters() if "mask_token" in name]
    assert names == [f"densify.{level}.mask_token" for level in range(3)]


@torch.no_grad()
def test_unet_evaluates_with_the_statistics_that_training_gathered():
    head, inputs = build(), features()
    first = head.eval()(inputs).map_BCHW
    head.train()(inputs)
    second = head.eval()(inputs).map_BCHW
    assert not torch.equal(first, second)
    rows = Features(inputs.tokens_BND[:1], inputs.grid, KEPT[:1], stages_BDhw=tuple(x[:1] for x in inputs.stages_BDhw))
    torch.testing.assert_close(head(rows).map_BCHW, second[:1], rtol=0, atol=1e-12)  # images do not meet


# ---------------------------------------------------------------- cost and compilation


def test_work_of_the_unet_is_its_own_also_behind_an_encoder_that_gives_several_maps():
    with torch.device("meta"):
        model = assemble("random", "swin", "replace", UNet)
        plain = assemble("random", "swin", "replace", "transformer")
        head = summarise_model(model, model.encoder.image).work
        encoder = summarise_model(plain, plain.encoder.image).work["encoder"]
    assert head["encoder"] == encoder
    model, img = assemble("random", "swin", "replace", UNet), images(2)
    inputs = model.encode(img, sampled(model, img))
    inputs = replace(
        inputs,
        tokens_BND=inputs.tokens_BND.detach().requires_grad_(),
        stages_BDhw=tuple(map_BDhw.detach().requires_grad_() for map_BDhw in inputs.stages_BDhw),
    )
    with FlopCounterMode(display=False) as counter:
        model.head(inputs).map_BCHW.sum().backward()
    assert head["head"].training == counter.get_total_flops() / 2


@pytest.mark.slow
def test_unet_compiles_as_one_graph():
    torch._dynamo.reset()
    head, counter, inputs = build(densify_norm="batch").train(), CompileCounter(), features()
    compiled = torch.compile(head, backend=counter, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(inputs).map_BCHW, head(inputs).map_BCHW)
    assert counter.frame_count == 1
    torch._dynamo.reset()


# ---------------------------------------------------------------- what it refuses


def test_unet_refuses_more_blocks_than_lead_to_the_target():
    with pytest.raises(
        ValueError,
        match=r"HEAD\.depth is 4: .*stride of 8 can be halved at most 3 times on the way to TARGET\.stride 1",
    ):
        build(depth=4)
    with pytest.raises(ValueError, match=r"HEAD\.depth is 2: .*at most 1 times"):
        build(target=TargetSpec(3, 4), depth=2)


def test_unet_without_a_block_is_refused_where_hidden_places_would_see_nothing():
    coarse = TargetSpec(3, DROPPED.stride)
    with pytest.raises(ValueError, match=rf"HEAD\.name unet has no block .* TARGET\.stride {DROPPED.stride}"):
        build(target=coarse)
    assert not build(replace(DROPPED, drops_hidden=False), coarse).blocks()


@pytest.mark.parametrize(
    ("width", "message"), [(12, r"width is 12: each of 3 blocks.*multiple of 8"), (0, "at least 1")]
)
def test_unet_refuses_a_width_that_cannot_be_halved_so_often(width, message):
    with pytest.raises(ValueError, match=rf"HEAD\..*{message}"):
        build(width=width)
