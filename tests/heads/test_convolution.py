"""The convolution head: what it computes, the noise in dropped places, and what its keys refuse."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_models import assemble, generator, images, sampled, small

from mim.heads import Convolution
from mim.ops.patches import patchify
from mim.ops.seeding import normals, scores
from mim.structures import EncoderSpec, Features, TargetSpec

SPEC = EncoderSpec(width=12, stride=8, patch=8, grid=(3, 4), drops_hidden=True, num_prefix=1)
TARGET = TargetSpec(channels=3, stride=4)


def build_head(spec=SPEC, seed=1, **keys) -> Convolution:
    torch.manual_seed(seed)
    return small(Convolution, spec, TARGET, **{"width": 12, "groups": 3, **keys}).double()


def features(num_visible=5, batch=2, seed=0) -> Features:
    """Dropped features of as many kept tokens, with the draw of a mask."""
    chance, count = generator(seed), math.prod(SPEC.grid)
    kept_BN = torch.rand(batch, count, generator=chance).argsort(dim=1)[:, :num_visible].sort(dim=1).values
    tokens_BND = torch.randn(batch, num_visible, SPEC.width, generator=chance, dtype=torch.float64)
    prefix_BKD = torch.randn(batch, 1, SPEC.width, generator=chance, dtype=torch.float64)
    return Features(tokens_BND, SPEC.grid, kept_BN, prefix_BKD, torch.randint(2**31, (batch,), generator=chance))


def dense(tokens_BND) -> Features:
    return Features(tokens_BND, SPEC.grid)


def convolved(conv, rows, groups):
    """A convolution with zeros around the grid, place by place: `rows` is a list of rows of vectors."""
    high, wide, reach = len(rows), len(rows[0]), conv.kernel_size[0] // 2
    sources, outputs = len(rows[0][0]) // groups, conv.out_channels // groups
    result = []
    for row in range(high):
        result.append([])
        for column in range(wide):
            sums = conv.bias.clone()
            for channel in range(conv.out_channels):
                first = channel // outputs * sources
                for down in range(-reach, reach + 1):
                    for across in range(-reach, reach + 1):
                        if 0 <= row + down < high and 0 <= column + across < wide:
                            vector = rows[row + down][column + across][first : first + sources]
                            sums[channel] += conv.weight[channel, :, down + reach, across + reach] @ vector
            result[-1].append(sums)
    return result


@pytest.mark.parametrize(("width", "kernel", "groups"), [(12, 3, 3), (8, 3, 4), (6, 5, 1)])
@torch.no_grad()
def test_convolution_equals_its_formulas(width, kernel, groups):
    """A residual stands around each convolution between equal widths, so not around the first one of another width."""
    head = build_head(width=width, depth=2, kernel=kernel, groups=groups)
    tokens_BND = torch.randn(1, 12, 12, generator=generator(3), dtype=torch.float64)
    rows = [list(tokens_BND[0, 4 * row : 4 * row + 4]) for row in range(3)]
    for block in head.layers:
        new = convolved(block.conv, rows, groups)
        for row in range(3):
            for column in range(4):
                vector = new[row][column]
                normed = (vector - vector.mean()) / (vector.var(correction=0) + 1e-5).sqrt()
                output = normed * 0.5 * (1 + torch.erf(normed / math.sqrt(2)))
                before = rows[row][column]
                new[row][column] = output + before if len(before) == len(output) else output
        rows = new
    expected = torch.stack([head.predict(vector) for row in rows for vector in row])
    actual = patchify(head(dense(tokens_BND)).map_BCHW, head.entries_per_side)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_convolution_puts_noise_of_the_draw_in_dropped_places_while_training():
    head, inputs = build_head(noise=0.3).train(), features()
    filled_BND = (0.3 * normals(inputs.draw_B, 12 * 12)).double().unflatten(1, (12, 12))
    for sample, kept_N in enumerate(inputs.kept_BN.tolist()):
        for number, place in enumerate(kept_N):
            filled_BND[sample, place] = inputs.tokens_BND[sample, number]
    expected = head(dense(filled_BND)).map_BCHW
    state = torch.get_rng_state()
    torch.testing.assert_close(head(inputs).map_BCHW, expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    another = head(replace(inputs, draw_B=inputs.draw_B + 1)).map_BCHW
    assert not torch.allclose(another, expected)


@pytest.mark.parametrize("way", ["eval", "no draw", "no noise"])
@torch.no_grad()
def test_convolution_puts_zeros_in_dropped_places_elsewhere(way):
    head, inputs = build_head(noise=0.0 if way == "no noise" else 0.3).train(way != "eval"), features()
    inputs = replace(inputs, draw_B=None) if way == "no draw" else inputs
    zeros_BND = torch.zeros(2, 12, 12, dtype=torch.float64)
    filled_BND = zeros_BND.scatter(1, inputs.kept_BN[..., None].expand(-1, -1, 12), inputs.tokens_BND)
    torch.testing.assert_close(head(inputs).map_BCHW, head(dense(filled_BND)).map_BCHW, rtol=0, atol=1e-12)


def test_convolution_rows_of_a_batch_have_noise_of_their_own():
    """So that ranks and micro-batches compute as one; and each place and mask has another one."""
    model, img = assemble("random", "vit", "drop", Convolution, head_keys={"noise": 1.0}).train(), images(6)
    mask = sampled(model, img)
    expected = model(img, mask).prediction
    torch.testing.assert_close(model(img[2:5], mask.rows(2, 5)).prediction, expected[2:5], rtol=0, atol=1e-5)


def test_normals_are_normal_finite_and_equal_for_equal_draws():
    draw_B = torch.randint(2**31, (100,), generator=generator(0))
    normals_BN = normals(draw_B, 1000)
    assert normals_BN.dtype == torch.float32
    assert torch.equal(normals_BN, normals(draw_B, 1000))
    assert stats.kstest(normals_BN.flatten().numpy(), "norm").pvalue > 1e-3
    expected = stats.norm.ppf(((scores(draw_B, 1000) >> 9).double() + 0.5) / 2**23)
    torch.testing.assert_close(normals_BN.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-6)
    correlation = torch.corrcoef(normals_BN)  # between samples
    assert (correlation - torch.eye(100)).abs().max() < 0.2


def test_convolution_has_the_sizes_of_data2vec_2():
    """6 convolutions of 768 channels in 16 groups, then a linear layer to the teacher's width."""
    with torch.device("meta"):
        spec = EncoderSpec(width=768, stride=16, patch=16, grid=(14, 14), drops_hidden=True, num_prefix=1)
        head = Convolution(spec, TargetSpec(768, 16))
    assert sum(weight.numel() for weight in head.parameters()) == 6 * (768 * 48 * 9 + 768) + 768 * 768 + 768
    assert [block.residual for block in head.layers] == [True] * 6


def test_convolution_does_not_fill_what_an_encoder_replaces():
    model, img = assemble("random", "vit", "replace", Convolution, head_keys={"noise": 5.0}).train(), images(2)
    mask = sampled(model, img)
    assert torch.equal(model(img, mask).prediction, model(img, replace(mask, draw_B=None)).prediction)


@torch.no_grad()
def test_convolution_in_bf16_has_the_precision_of_the_tokens():
    inputs = features()
    inputs = replace(inputs, tokens_BND=inputs.tokens_BND.float(), prefix_BKD=None)
    head = build_head().float().train()
    with torch.autocast("cpu", torch.bfloat16):
        map_BCHW = head(replace(inputs, tokens_BND=inputs.tokens_BND.bfloat16())).map_BCHW
    torch.testing.assert_close(map_BCHW.float(), head(inputs).map_BCHW, rtol=0, atol=0.05)
    assert F.cosine_similarity(map_BCHW.float().flatten(), head(inputs).map_BCHW.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kernel": 4}, r"HEAD\.kernel is 4: it must be odd and at least 3"),
        ({"kernel": 1}, r"HEAD\.kernel is 1: it must be odd and at least 3"),
        ({"groups": 5}, r"HEAD\.groups 5 does not divide HEAD\.width 12"),
        ({"width": 16, "groups": 8}, r"HEAD\.groups 8 does not divide the width of the encoder's tokens, 12"),
        ({"groups": 0}, r"HEAD\.groups is 0"),
        ({"noise": -1.0}, r"HEAD\.noise is -1\.0"),
        ({"depth": 0}, r"HEAD\.depth is 0"),
    ],
)
def test_convolution_refuses_by_key_and_value(keys, message):
    with pytest.raises(ValueError, match=message):
        build_head(**keys)
