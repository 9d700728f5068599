"""Truncated normal weights: what erfinv's edge left at the far bound is drawn again, and nothing else changes."""

from unittest import mock

import pytest
import timm.layers.weight_init
import torch
from torch import nn

from mim.encoders import Swin, SwinV2
from mim.ops.truncated_normal import FARTHEST, redraw_clamped_, trunc_normal_
from mim.structures import ImageSpec

SMALL = {"patch": 4, "width": 8, "depths": (1, 1), "heads": (2, 2), "window": 4}


def weights(*clamped: int, seed: int = 0) -> torch.Tensor:
    """Weights of std .02, with -2 at some positions."""
    torch.manual_seed(seed)
    weight = nn.init.trunc_normal_(torch.empty(8, 16), std=0.02)
    weight.view(-1)[list(clamped)] = -2.0
    return weight


def test_redraw_changes_clamped_weights_alone():
    before, weight = weights(3, 100), weights(3, 100)
    generator = torch.get_rng_state()
    redraw_clamped_([weight], 0.02)
    assert (weight != before).flatten().nonzero().flatten().tolist() == [3, 100]
    assert weight.abs().max() <= FARTHEST * 0.02
    assert weight.view(-1)[3] != weight.view(-1)[100]
    assert torch.equal(torch.get_rng_state(), generator)


def test_redraw_depends_on_seed_and_position_alone():
    def redrawn(*clamped: int, seed: int = 0) -> list[float]:
        weight = weights(*clamped, seed=seed)
        torch.rand(seed + 5)  # how far the global generator has come has no effect
        redraw_clamped_([weight], 0.02)
        return weight.view(-1)[list(clamped)].tolist()

    assert redrawn(3) == redrawn(3)
    assert len({redrawn(3)[0], redrawn(4)[0], redrawn(3, seed=1)[0]}) == 3


def test_redraw_draws_from_the_normal_distribution():
    weight = torch.full((100_000,), -2.0)
    redraw_clamped_([weight], 0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=5 * 0.02 / 100_000**0.5)
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)


def test_redraw_keeps_the_farthest_number_that_a_draw_can_give():
    """The smallest number of a float32 draw, 2 / 2^24 above -1, is a weight of 5.3 standard deviations: it stays."""
    edge = torch.erfinv(torch.tensor([-1 + 2**-23, -1.0])) * 0.02 * 2**0.5
    weight = edge.clamp(-2, 2)
    assert weight[1] == -2
    redraw_clamped_([weight], 0.02)
    assert weight[0] == edge[0]
    assert weight[1] != -2


@pytest.mark.parametrize("cut", [0.02, 2.0])
def test_trunc_normal_equals_that_of_pytorch_where_nothing_is_clamped(cut):
    torch.manual_seed(0)
    expected = nn.init.trunc_normal_(torch.empty(64, 64), std=0.02, a=-cut, b=cut)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(trunc_normal_(torch.empty(64, 64), 0.02, cut), expected)
    assert torch.equal(torch.rand(1), after)


def test_trunc_normal_keeps_weights_at_a_near_bound():
    """Cut at one standard deviation, a weight at the bound is right."""
    with mock.patch("torch.nn.init.trunc_normal_", lambda weight, **keys: weight.fill_(keys["a"])):
        assert (trunc_normal_(torch.empty(3), 0.02, 0.02) == -torch.tensor(0.02)).all()
        assert (trunc_normal_(torch.empty(3), 0.02).abs() <= FARTHEST * 0.02).all()


def test_trunc_normal_takes_weights_without_memory():
    assert trunc_normal_(torch.empty(3, device="meta"), 0.02).is_meta


@pytest.mark.parametrize("encoder", [Swin, SwinV2])
def test_swin_has_no_weight_that_timm_clamped(encoder):
    """As if each weight of timm's had such a number: only these differ from the weights without them."""
    draw, clamped = timm.layers.weight_init._trunc_normal_, []

    def draw_clamped(weight: torch.Tensor, *numbers: float) -> torch.Tensor:
        draw(weight, *numbers).view(-1)[0] = -2.0
        clamped.append(weight)
        return weight

    torch.manual_seed(0)
    expected = encoder(ImageSpec(3, 32, 32), **SMALL)
    torch.manual_seed(0)
    with mock.patch.object(timm.layers.weight_init, "_trunc_normal_", draw_clamped):
        other = encoder(ImageSpec(3, 32, 32), **SMALL)
    assert len(clamped) > 4
    for name, weight in other.named_parameters():
        different = (weight != expected.get_parameter(name)).flatten().nonzero().flatten().tolist()
        assert different == ([0] if any(weight is each for each in clamped) else []), name
        if different:
            assert weight.abs().max() <= FARTHEST * 0.02
