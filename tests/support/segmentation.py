"""Encoders, features and comparisons for the tests of segmentation readouts.

Shapes: B batch, D width, K outputs, h w entries high and wide.
"""

from dataclasses import replace

import torch
from small_models import generator
from torch import Tensor

from mim.readouts.base import Readout
from mim.structures import EncoderSpec, Features, StageSpec

STAGES = (StageSpec(6, 4), StageSpec(8, 8), StageSpec(12, 16), StageSpec(16, 32))
SPEC = EncoderSpec(width=16, stride=32, patch=4, grid=(2, 3), drops_hidden=False, stages=STAGES)
PLAIN = replace(SPEC, grid=(2, 4), stages=(StageSpec(16, 32),) * 4)


def shifted(readout: Readout) -> Readout:
    """In float64, with norms and biases that have an effect."""
    readout = readout.double()
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64))
    return readout


def features(readout: Readout, batch: int = 2) -> Features:
    """What a readout asks for, as noise."""
    chance, spec = generator(2), readout.encoder
    high, wide = (spec.stride * side for side in spec.grid)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=chance, dtype=torch.float64).requires_grad_()

    stages = [spec.stages[number] for number in readout.stages]
    maps = tuple(noise(stage.width, high // stage.stride, wide // stage.stride) for stage in stages)
    return Features(noise(spec.grid[0] * spec.grid[1], spec.width), spec.grid, stages_BDhw=maps)


def assert_same(readout: Readout, inputs: Features, expected_BKhw: Tensor) -> None:
    """Equal scores and gradients of weights and features."""
    scores_BKhw = readout(inputs)
    torch.testing.assert_close(scores_BKhw, expected_BKhw, rtol=1e-10, atol=1e-11)
    weights_BKhw = torch.randn(scores_BKhw.shape, generator=generator(3), dtype=torch.float64)
    sources = [*readout.parameters(), *inputs.stages_BDhw, inputs.tokens_BND]
    ours, theirs = (
        torch.autograd.grad((each * weights_BKhw).sum(), sources, allow_unused=True)
        for each in (scores_BKhw, expected_BKhw)
    )
    for number, (gradient, expected) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-9, msg=f"source {number}")
