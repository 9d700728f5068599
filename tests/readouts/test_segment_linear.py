"""The segment_linear readout: what it computes in training and evaluation, and from which stages.

Shapes: B batch, D width, K outputs, h w entries high and wide.
"""

from dataclasses import replace

import pytest
import torch
from segmentation import SPEC, STAGES, assert_same, features, shifted

from mim.readouts.segment_linear import SegmentLinear
from mim.structures import Features

THREE = replace(SPEC, width=12, stride=16, stages=STAGES[:3])


def build(**keys) -> SegmentLinear:
    torch.manual_seed(0)
    return shifted(SegmentLinear(THREE, 5, **{"dropout": 0.0, **keys}))


def bilinear(coarse: int, fine: int) -> torch.Tensor:
    """The weights (fine, coarse) of bilinear resizing where pixels are squares: align_corners False."""
    weights = torch.zeros(fine, coarse, dtype=torch.float64)
    for row in range(fine):
        position = min(max((row + 0.5) * coarse / fine - 0.5, 0), coarse - 1)
        low = min(int(position), coarse - 2)
        weights[row, low], weights[row, low + 1] = 1 - (position - low), position - low
    return weights


def concatenated(readout: SegmentLinear, inputs: Features) -> torch.Tensor:
    maps = list(inputs.stages_BDhw)
    if readout.maps.with_output:
        maps.append(inputs.tokens_BND.mT.unflatten(2, (2, 3)))
    high, wide = maps[0].shape[2:]
    return torch.cat(
        [
            torch.einsum("bdhw,ih,jw->bdij", each, bilinear(each.shape[2], high), bilinear(each.shape[3], wide))
            if each is not maps[0]
            else each
            for each in maps
        ],
        dim=1,
    )


def predicted(readout: SegmentLinear, map_BDhw, mean_D, var_D) -> torch.Tensor:
    shape = (-1, 1, 1)
    normed_BDhw = (map_BDhw - mean_D.view(shape)) / (var_D.view(shape) + 1e-5).sqrt()
    normed_BDhw = normed_BDhw * readout.norm.weight.view(shape) + readout.norm.bias.view(shape)
    scores_BKhw = torch.einsum("bdhw,kd->bkhw", normed_BDhw, readout.predict.weight.flatten(1))
    return scores_BKhw + readout.predict.bias.view(shape)


@pytest.mark.parametrize("stages", [(), (-1,), (0, 1), (0, 1, 2), (1, -1)])
def test_segment_linear_is_its_formula_with_its_gradients(stages):
    """BatchNorm over images and places, with weights, and a linear map of each place."""
    readout = build(stages=stages)
    inputs = features(readout)
    map_BDhw = concatenated(readout, inputs)
    mean_D, var_D = map_BDhw.mean(dim=(0, 2, 3)), map_BDhw.var(dim=(0, 2, 3), correction=0)
    assert_same(readout, inputs, predicted(readout, map_BDhw, mean_D, var_D))


def test_segment_linear_evaluates_by_the_running_statistics_of_training():
    readout = build(stages=(0, -1))
    inputs = features(readout)
    map_BDhw = concatenated(readout, inputs).detach()
    mean_D, var_D = torch.zeros(18, dtype=torch.float64), torch.ones(18, dtype=torch.float64)
    for _ in range(2):
        readout(inputs)
        mean_D = 0.9 * mean_D + 0.1 * map_BDhw.mean(dim=(0, 2, 3))
        var_D = 0.9 * var_D + 0.1 * map_BDhw.var(dim=(0, 2, 3), correction=1)
    expected_BKhw = predicted(readout, map_BDhw, mean_D, var_D)
    torch.testing.assert_close(readout.eval()(inputs), expected_BKhw, rtol=1e-11, atol=1e-12)


def test_dropout_sets_whole_channels_ahead_of_the_norm_to_zero_in_training_alone():
    readout, inputs = build(dropout=0.5), features(build(), batch=64)
    before_BDhw: list[torch.Tensor] = []
    readout.norm.register_forward_pre_hook(lambda module, arguments: before_BDhw.append(arguments[0]))
    readout(inputs), readout.eval()(inputs)
    map_BDhw = concatenated(readout, inputs)
    kept_BD = before_BDhw[0].abs().sum(dim=(2, 3)) > 0
    torch.testing.assert_close(before_BDhw[0], 2 * map_BDhw * kept_BD[..., None, None])
    assert 0.4 < kept_BD.double().mean() < 0.6
    torch.testing.assert_close(before_BDhw[1], map_BDhw)


def test_segment_linear_starts_as_published():
    torch.manual_seed(0)
    readout = SegmentLinear(replace(SPEC, width=768, stages=()), 50)
    assert readout.dropout.p == 0.1
    assert readout.predict.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not readout.predict.bias.any()


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(ValueError, match=f"READOUT.dropout is {dropout}: it is a share"):
        build(dropout=dropout)
