"""The maps that detectors and segmenters take from an encoder, at strides of 4, 8, 16 and 32 pixels.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, D width.
"""

import pytest
import torch
from small_models import images, members, small
from torch import Tensor

from mim.encoders import Encoder, Swin, SwinV2
from mim.structures import Features, ImageSpec

SIZES = [(32, 64), (64, 32), (96, 160)]
WINDOWED = pytest.mark.parametrize("part", [Swin, SwinV2])


def make(name: str, height: int = 32, width: int = 64, **keys) -> Encoder:
    torch.manual_seed(0)
    return small(Encoder.named(name), ImageSpec(3, height, width), **{"hidden": "none", **keys}).eval()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", members(Encoder))
@torch.no_grad()
def test_feature_maps_have_the_four_strides_of_any_encoder(name, height, width):
    encoder = make(name, height, width)
    img, last = images(2, encoder.image), encoder.spec.stride
    maps = encoder.feature_maps(img)
    assert list(maps) == [4, 8, 16, 32]
    for stride, map_BDhw in maps.items():
        assert map_BDhw.shape[2:] == (height // stride, width // stride)
        assert map_BDhw.isfinite().all()
        assert map_BDhw.std() > 0.05
        assert map_BDhw.shape[:2] == (2, encoder.spec.width if stride >= last else map_BDhw.shape[1])
    tokens_BDhw = encoder(img).tokens_BND.transpose(1, 2).unflatten(2, encoder.spec.grid)
    assert torch.equal(maps[last], tokens_BDhw)  # patches alone, in their places


@pytest.mark.parametrize("name", members(Encoder))
@torch.no_grad()
def test_feature_maps_of_strides_that_do_not_divide_the_image_round_up(name):
    encoder = make(name, 24, 40, **({"window": 16} if name.startswith("swin") else {}))
    maps = encoder.feature_maps(images(1, encoder.image))
    assert [tuple(map_BDhw.shape[2:]) for map_BDhw in maps.values()] == [(6, 10), (3, 5), (2, 3), (1, 2)]
    assert list(encoder.feature_maps(images(1, encoder.image), strides=(16,))) == [16]


@pytest.mark.parametrize("name", members(Encoder))
@torch.no_grad()
def test_feature_maps_are_the_same_each_time_and_need_no_hiding(name):
    plain, replacing = make(name), make(name, hidden="replace")
    replacing.load_state_dict(plain.state_dict(), strict=False)
    img = images(2, plain.image)
    for stride, map_BDhw in plain.feature_maps(img).items():
        assert torch.equal(map_BDhw, plain.feature_maps(img)[stride])
        assert torch.equal(map_BDhw, replacing.feature_maps(img)[stride])


def test_feature_maps_carry_gradients_to_every_stage():
    encoder = make("swin_v2")
    sum(map_BDhw.square().mean() for map_BDhw in encoder.feature_maps(images(1, encoder.image)).values()).backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# ---------------------------------------------------------------- stages


@WINDOWED
@pytest.mark.parametrize(("height", "width"), [(64, 128), (64, 64)])
@torch.no_grad()
def test_stage_maps_are_the_stages_of_timm_by_stride(part, height, width):
    encoder = make(part.name, height, width, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4))
    img = images(2, encoder.image)
    maps = encoder.stage_maps(img)
    assert {stride: tuple(map_BDhw.shape[1:]) for stride, map_BDhw in maps.items()} == {
        4 * 2**i: (8 * 2**i, height // (4 * 2**i), width // (4 * 2**i)) for i in range(4)
    }
    last, theirs = encoder.backbone.forward_intermediates(img, norm=False)
    for stage_map, other in zip([*maps.values()][:-1], theirs[:-1], strict=True):
        assert torch.equal(stage_map, other)
    assert torch.equal(maps[32], last.permute(0, 3, 1, 2))  # behind the norm, as the features are
    assert not torch.allclose(maps[32], theirs[-1], atol=1e-2)
    assert all(torch.equal(stage_map, maps[stride]) for stride, stage_map in encoder.feature_maps(img).items())


@pytest.mark.parametrize("name", ["vit", "beit"])
@torch.no_grad()
def test_stage_maps_of_a_plain_encoder_are_its_last_tokens_alone(name):
    encoder = make(name)
    maps, tokens_BND = encoder.stage_maps(images(2)), encoder(images(2)).tokens_BND
    assert list(maps) == [8]
    assert torch.equal(maps[8].flatten(2).transpose(1, 2), tokens_BND)
    assert maps[8].shape[2:] == encoder.spec.grid


# ---------------------------------------------------------------- resampling


class StageMaps(Encoder):
    """An encoder of given stage maps."""

    def __init__(self, maps: dict[int, Tensor]):
        super().__init__(ImageSpec(1, 64, 128), "none", width=1, patch=8)
        self.maps = maps

    def stage_maps(self, img_BCHW: Tensor) -> dict[int, Tensor]:
        return self.maps

    def forward(self, img_BCHW, mask=None) -> Features:
        raise NotImplementedError


def ramp(stride: int) -> Tensor:
    """The height and the width at the middle of each place, in pixels, of an image of 64 x 128."""
    middles = [torch.arange(stride / 2, side, stride, dtype=torch.float64) for side in (64, 128)]
    return torch.stack(torch.meshgrid(*middles, indexing="ij"))[None]


def test_feature_maps_are_resampled_in_their_places():
    maps = StageMaps({8: ramp(8)}).feature_maps(torch.zeros(1, 1, 64, 128))
    for stride in (4, 16, 32):
        map_BDhw, expected, edge = maps[stride], ramp(stride), max(1, 8 // stride)
        assert map_BDhw.shape == expected.shape
        inside = (..., slice(edge, -edge or None), slice(edge, -edge or None))
        if stride == 32:  # two places high: all at the edge
            inside = (0, 1, slice(None), slice(1, -1))
        torch.testing.assert_close(map_BDhw[inside], expected[inside], rtol=0, atol=1e-9)


def test_feature_maps_are_made_from_the_nearest_finer_stage_or_else_the_finest():
    maps = {8: torch.full((1, 2, 8, 16), 8.0), 16: torch.full((1, 4, 4, 8), 16.0)}
    resampled = StageMaps(maps).feature_maps(torch.zeros(1, 1, 64, 128))
    assert {stride: (map_BDhw.shape[1], map_BDhw.unique().tolist()) for stride, map_BDhw in resampled.items()} == {
        4: (2, [8.0]),
        8: (2, [8.0]),
        16: (4, [16.0]),
        32: (4, [16.0]),
    }
    assert resampled[8] is maps[8]
    assert resampled[16] is maps[16]


def test_feature_maps_average_what_a_coarser_place_covers():
    # a fine checkerboard is grey from afar; every second place of it would be black
    board = (torch.arange(8)[:, None] + torch.arange(16)) % 2
    maps = StageMaps({8: board[None, None].double()}).feature_maps(torch.zeros(1, 1, 64, 128))
    torch.testing.assert_close(maps[16], torch.full((1, 1, 4, 8), 0.5, dtype=torch.float64), rtol=0, atol=0.15)
