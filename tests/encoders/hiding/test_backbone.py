"""What a user can set for a backbone of timm: a mistake is answered with the key and the value."""

import pytest
import torch

from mim.encoders.hiding.backbone import BackboneSettings
from mim.encoders.hiding.layout import measure
from mim.structures import ImageSpec

IMAGE = ImageSpec(3, 64, 64)
MISTAKES = {
    "a bracket that stays open": (
        "test_vit",
        ("patch_size=[",),
        0.0,
        r"options 'patch_size=\[': '\[' is no YAML value",
    ),
    "an option twice": ("test_vit", ("depth=1", "depth=2"), 0.0, "names depth twice"),
    "a division by zero in timm": (
        "test_vit",
        ("patch_size=0",),
        0.0,
        r"options \['patch_size=0'\]: ZeroDivisionError",
    ),
    "an unknown layer": ("test_resnet", ("act_layer=none_such",), 0.0, "KeyError 'none_such'"),
    "an error without a text": ("test_resnet", ("output_stride=7",), 0.0, r"'output_stride=7'\]: AssertionError$"),
    "a negative rate": ("test_vit", (), -0.1, "drop_path is -0.1: it is a rate"),
    "a rate of 1": ("test_resnet", (), 1.0, "drop_path is 1.0: it is a rate"),
    "no rate": ("test_vit", (), float("nan"), "drop_path is nan: it is a rate"),
    "a rate among the options": ("test_vit", ("drop_path_rate=2",), 0.0, "drop_path is 2: it is a rate"),
    "a rate in two places": ("test_vit", ("drop_path_rate=0.2",), 0.1, "drop_path is 0.1, and ENCODER.options has"),
    "a model of a hub": ("hf-hub:timm/test_vit.r160_in1k", (), 0.0, "name its architecture, and its file by INIT"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_refused_with_its_key_and_value(mistake):
    model, options, rate, message = MISTAKES[mistake]
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        BackboneSettings(model, options, rate).build(IMAGE)


def test_size_that_leaves_a_rest_beside_the_patches_is_refused():
    """60 px are 3 patches of 16 px and a rest, of which timm makes 3 x 3 tokens that look like 20 px each."""
    assert measure(BackboneSettings("vit_tiny_patch16_224", ("depth=1",), 0.0), ImageSpec(3, 48, 64)).grid == (3, 4)
    with pytest.raises(
        ValueError, match="the encoder's patch 16 does not divide the image height 60: use a height of 48"
    ):
        measure(BackboneSettings("vit_tiny_patch16_224", ("depth=1",), 0.0), ImageSpec(3, 60, 60))


@pytest.mark.parametrize("side", [48, 80])
def test_size_of_which_a_layer_leaves_the_border_out_is_refused(side):
    """A ConvNeXt of 80 px has maps of 20, 10, 5 and 2 places: the last row and column are not looked at."""
    settings = BackboneSettings("convnext_atto", (), 0.0)
    assert [stage.stride for stage in measure(settings, ImageSpec(3, 96, 64)).stages] == [4, 8, 16, 32]
    with pytest.raises(ValueError, match=f"the encoder's stride 32 does not divide the image height {side}"):
        measure(settings, ImageSpec(3, side, side))


def test_rate_reaches_timm_from_its_key_or_from_the_options():
    for settings in (BackboneSettings("test_vit", (), 0.2), BackboneSettings("test_vit", ("drop_path_rate=0.2",))):
        with torch.device("meta"):
            backbone = settings.build(IMAGE)
        assert backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert BackboneSettings("test_resnet", ("drop_path_rate=0",)).taken(IMAGE)["drop_path_rate"] == 0
