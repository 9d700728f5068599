"""Which maps readouts take from an encoder, by number and by default.

Shapes: B batch, N tokens, D width, h w entries high and wide.
"""

from dataclasses import replace

import pytest
import torch

from mim.readouts.encoder_maps import EncoderMaps
from mim.structures import EncoderSpec, Features, StageSpec

PLAIN = EncoderSpec(width=12, stride=16, patch=16, grid=(2, 3), drops_hidden=False)


def plain(depth: int) -> EncoderSpec:
    return replace(PLAIN, stages=(StageSpec(12, 16),) * depth)


def hierarchical(*strides: int) -> EncoderSpec:
    return replace(PLAIN, stages=tuple(StageSpec(10 + number, stride) for number, stride in enumerate(strides)))


@pytest.mark.parametrize(
    ("encoder", "stages"),
    [
        (plain(12), (2, 5, 8, 11)),
        (plain(24), (5, 11, 17, 23)),
        (plain(40), (9, 19, 29, 39)),
        (plain(6), (1, 2, 4, 5)),
        (plain(4), (0, 1, 2, 3)),
        (plain(3), (0, 1, 2)),
        (plain(2), (0, 1)),
        (plain(1), (0,)),
        (plain(0), (0,)),
        (hierarchical(4, 8, 16, 32), (0, 1, 2, 3)),
        (hierarchical(2, 4, 8, 16, 32), (1, 2, 3, 4)),
        (hierarchical(4, 4, 8, 8, 8, 16), (1, 4, 5)),
        (hierarchical(4, 8), (0, 1)),
    ],
)
def test_four_maps_are_spread_over_blocks_or_strides(encoder, stages):
    maps = EncoderMaps.four(encoder)
    assert (*maps.stages, max(0, len(encoder.stages) - 1)) == stages
    assert maps.with_output


@pytest.mark.parametrize(
    ("named", "stages", "with_output"),
    [((), (), True), ((-1,), (), True), ((2, 0), (0, 2), False), ((3, 1), (1,), True), ((-4, -2), (0, 2), False)],
)
def test_stages_are_named_from_either_end_and_the_last_is_the_output(named, stages, with_output):
    maps = EncoderMaps.named(hierarchical(4, 8, 16, 32), named)
    assert (maps.stages, maps.with_output) == (stages, with_output)


def test_specs_and_maps_are_those_of_the_stages_and_of_the_output():
    encoder = hierarchical(4, 8, 16)
    maps = EncoderMaps.named(encoder, (1, -1))
    assert maps.specs == [StageSpec(11, 8), StageSpec(12, 16)]
    tokens_BND, stage_BDhw = torch.randn(2, 6, 12), torch.randn(2, 11, 4, 6)
    first, last = maps.read(Features(tokens_BND, (2, 3), stages_BDhw=(stage_BDhw,)))
    assert first is stage_BDhw
    for row in range(2):
        for column in range(3):
            assert torch.equal(last[:, :, row, column], tokens_BND[:, 3 * row + column])


@pytest.mark.parametrize(
    ("encoder", "stages", "message"),
    [
        (plain(2), (2,), r"no stage 2; it has 0 to 1 \(of strides 16, 16\), or -2 to -1"),
        (plain(2), (-3,), r"no stage -3; it has 0 to 1"),
        (plain(2), (1, -1), r"READOUT.stages \[1, -1\] names a stage twice"),
        (plain(0), (1,), r"no stage 1; it has 0 to 0 \(of strides 16\)"),
    ],
)
def test_stages_that_do_not_exist_are_refused(encoder, stages, message):
    with pytest.raises(ValueError, match=message):
        EncoderMaps.named(encoder, stages)
