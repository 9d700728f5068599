"""The segment_fpn readout: what it computes, by hand, and what it refuses.

Shapes: B batch, D width, K outputs, h w entries high and wide.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from segmentation import PLAIN, SPEC, assert_same, features, shifted
from torch import Tensor

from mim.readouts.segment_fpn import SegmentFPN
from mim.structures import Features, StageSpec


def build(spec=SPEC, **keys) -> SegmentFPN:
    torch.manual_seed(0)
    return shifted(SegmentFPN(spec, 5, **{"channels": 8, **keys}))


def unit(conv_norm_relu, map_BDhw: Tensor) -> Tensor:
    """A 3x3 convolution, GroupNorm in two groups of four channels, ReLU."""
    map_BDhw = F.conv2d(map_BDhw, conv_norm_relu[0].weight, padding=1)
    grouped = map_BDhw.unflatten(1, (2, 4)).flatten(2)
    grouped = (grouped - grouped.mean(dim=2, keepdim=True)) / (
        grouped.var(dim=2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    scale, shift = (each.view(-1, 1, 1) for each in conv_norm_relu[1].parameters())
    return (grouped.view(map_BDhw.shape) * scale + shift).clamp(min=0)


def by_hand(readout: SegmentFPN, maps: list[Tensor]) -> Tensor:
    """The semantic branch of Panoptic FPN on four levels, each half the size of the one before."""
    p2, p3, p4, p5 = (
        torch.einsum("bdhw,ed->behw", each, lateral.weight.flatten(1)) + lateral.bias[:, None, None]
        for each, lateral in zip(maps, readout.lateral, strict=True)
    )
    p4 = p4 + p5.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    p3 = p3 + p4.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    p2 = p2 + p3.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def twice(map_BDhw: Tensor) -> Tensor:
        return F.interpolate(map_BDhw, scale_factor=2, mode="bilinear", align_corners=False)

    up = readout.up
    sum_BDhw = unit(up[0][0], p2) + twice(unit(up[1][0], p3)) + twice(unit(up[2][1], twice(unit(up[2][0], p4))))
    sum_BDhw = sum_BDhw + twice(unit(up[3][2], twice(unit(up[3][1], twice(unit(up[3][0], p5))))))
    return F.conv2d(sum_BDhw, readout.predict.weight, readout.predict.bias)


@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["strides", "plain"])
def test_segment_fpn_is_its_formula_with_its_gradients(spec):
    readout = build(spec)
    inputs = features(readout)
    assert readout(inputs).shape == ((2, 5, 16, 24) if spec is SPEC else (2, 5, 8, 16))
    assert_same(readout, inputs, by_hand(readout, readout.pyramid(inputs)))


def test_a_level_of_any_size_comes_up_to_the_finest():
    """Strides that skip one, and sizes that are not doubled."""
    spec = replace(SPEC, stages=(StageSpec(6, 4), StageSpec(8, 16), StageSpec(16, 32)), grid=(2, 3))
    readout = build(spec)
    maps = (torch.randn(1, 6, 13, 21).double(), torch.randn(1, 8, 4, 6).double())
    scores_BKhw = readout(Features(torch.randn(1, 6, 16).double(), (2, 3), stages_BDhw=maps))
    assert scores_BKhw.shape == (1, 5, 13, 21)
    assert [len(convs) for convs in readout.up] == [1, 1, 2]


def test_dropout_of_channels_acts_in_training_alone():
    readout = build(dropout=0.5)
    inputs = features(readout)
    assert not torch.equal(readout(inputs), readout(inputs))
    torch.testing.assert_close(readout.eval()(inputs), by_hand(readout, readout.pyramid(inputs)))


@pytest.mark.parametrize("channels", [0, 2, 6, -4])
def test_channels_without_groups_of_four_are_refused(channels):
    with pytest.raises(ValueError, match=f"READOUT.channels is {channels}: use a multiple of 4"):
        build(channels=channels)
