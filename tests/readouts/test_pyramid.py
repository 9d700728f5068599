"""The pyramid below FPN and UPerNet: its levels, how one stride becomes four, and its norm.

Shapes: B batch, D width, h w entries high and wide.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import generator

from mim.readouts.encoder_maps import EncoderMaps
from mim.readouts.pyramid import Pyramid, group_norm
from mim.structures import EncoderSpec, Features, StageSpec

PLAIN = EncoderSpec(width=12, stride=16, patch=16, grid=(3, 5), drops_hidden=False, stages=(StageSpec(12, 16),) * 12)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(sum(shape)), dtype=torch.float64)


def features(pyramid: Pyramid, encoder: EncoderSpec) -> Features:
    high, wide = encoder.grid
    factors = [encoder.stride // encoder.stages[stage].stride for stage in pyramid.maps.stages]
    maps = [
        noise(2, encoder.stages[stage].width, factor * high, factor * wide)
        for stage, factor in zip(pyramid.maps.stages, factors, strict=True)
    ]
    return Features(noise(2, high * wide, encoder.width), encoder.grid, stages_BDhw=tuple(maps))


def test_one_stride_becomes_four_by_transposed_convolutions_and_pooling():
    torch.manual_seed(0)
    pyramid = Pyramid(EncoderMaps.four(PLAIN), 8).double()
    inputs = features(pyramid, PLAIN)
    first, second, third = inputs.stages_BDhw
    last_BDhw = inputs.tokens_BND.mT.unflatten(2, (3, 5))
    up1, norm, _, up2 = pyramid.resize[0]

    def doubled(map_BDhw, layer) -> torch.Tensor:
        blocks = torch.einsum("bdhw,deij->behiwj", map_BDhw, layer.weight)
        return blocks.flatten(2, 3).flatten(3, 4) + layer.bias[:, None, None]

    halved = torch.stack(
        [
            torch.stack(
                [last_BDhw[:, :, row : row + 2, column : column + 2].amax(dim=(2, 3)) for column in (0, 2, 4)], 2
            )
            for row in (0, 2)
        ],
        dim=2,
    )
    expected = [doubled(F.gelu(norm(doubled(first, up1))), up2), doubled(second, pyramid.resize[1][0]), third, halved]
    assert [tuple(each.shape[1:]) for each in expected] == [(8, 12, 20), (8, 6, 10), (12, 3, 5), (12, 2, 3)]
    assert pyramid.widths == [8, 8, 12, 12]
    for level, expected_BDhw in zip(pyramid(inputs), expected, strict=True):
        torch.testing.assert_close(level, expected_BDhw)


@pytest.mark.parametrize(
    ("stages", "sources"), [((-1,), [0, 0, 0, 0]), ((3, -1), [0, 0, 1, 1]), ((0, 5, 9), [0, 1, 2, 2]), ((), None)]
)
def test_fewer_than_four_maps_are_read_several_times(stages, sources):
    encoder = PLAIN if stages else replace(PLAIN, stages=())
    pyramid = Pyramid(EncoderMaps.named(encoder, stages), 8).double()
    assert pyramid.sources == (sources or [0, 0, 0, 0])
    levels = pyramid(features(pyramid, encoder))
    assert [tuple(level.shape[2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]


@pytest.mark.parametrize(
    ("stride", "sides"), [(1, [4, 4, 4, 2]), (2, [8, 8, 4, 2]), (3, [8, 8, 4, 2]), (4, [16, 8, 4, 2])]
)
def test_no_level_is_finer_than_a_pixel(stride, sides):
    encoder = replace(PLAIN, stride=stride, patch=stride, grid=(4, 4), stages=())
    pyramid = Pyramid(EncoderMaps.four(encoder), 8).double()
    assert [level.shape[-1] for level in pyramid(features(pyramid, encoder))] == sides


def test_maps_of_several_strides_stay_as_they_are():
    encoder = replace(PLAIN, stages=(StageSpec(6, 4), StageSpec(8, 8), StageSpec(12, 16)))
    pyramid = Pyramid(EncoderMaps.four(encoder), 4)
    assert pyramid.widths == [6, 8, 12]
    assert not list(pyramid.parameters())
    inputs = features(pyramid, encoder)
    levels = pyramid(inputs)
    assert levels[0] is inputs.stages_BDhw[0]
    assert torch.equal(levels[2].flatten(2).mT, inputs.tokens_BND)


def test_more_than_four_stages_of_one_stride_are_refused():
    with pytest.raises(ValueError, match=r"READOUT.stages names 5 stages of one stride, 16: name at most 4"):
        Pyramid(EncoderMaps.named(PLAIN, (0, 1, 2, 3, 4)), 8)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (64, 16), (128, 32), (256, 32), (512, 32), (132, 1)])
def test_group_norm_has_groups_of_at_least_four_channels(channels, groups):
    assert group_norm(channels).num_groups == groups
    one_entry_BDhw = torch.randn(1, channels, 1, 1, generator=generator(0))
    assert group_norm(channels)(one_entry_BDhw).abs().max() > 0.1  # a group of one channel would always be 0
