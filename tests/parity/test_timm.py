"""Our encoders against timm's models of the same name: names, shapes and settings at full size, features, and scores.

Shapes: B batch, N tokens with prefix tokens first, D width, K classes.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from small_models import finetuned_predictor, generator, images, members
from torch import Tensor, nn

from mim.encoders import Encoder
from mim.ops.initial import Undrawn
from mim.structures import ImageSpec


@dataclass(frozen=True)
class Twin:
    """A model of timm's by its name there, and ours. options: what differs from timm's; keys: of our encoder."""

    name: str
    encoder: str
    keys: dict[str, Any]
    size: tuple[int, int] = (224, 224)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changes = [f"{key}={value}" for key, value in self.options.items()]
        return " ".join([self.name, f"{self.size[0]}x{self.size[1]}", *changes]).replace(", ", "-")

    def theirs(self, classes: int = 0, drop_path: float = 0.0) -> nn.Module:
        keys = {"img_size": self.size, "num_classes": classes, "drop_path_rate": drop_path, **self.options}
        return timm.create_model(self.name, **keys).eval()

    def ours(self, **keys: Any) -> Encoder:
        image = ImageSpec(3, *self.size)
        return Encoder.named(self.encoder)(image, **{"hidden": "none", **self.keys, **keys}).eval()


def vit(width: int, depth: int, heads: int, **keys: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, **keys}


def swin(width: int, heads: int, window: int, depths: tuple[int, ...], **keys: Any) -> dict[str, Any]:
    return {"width": width, "heads": tuple(heads * 2**i for i in range(4)), "window": window, "depths": depths, **keys}


TOKEN = {"global_pool": "token"}  # of Beit: then it has a norm on its tokens, as others have, and none behind the mean
SHARED = {**TOKEN, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
T, B = (2, 2, 6, 2), (2, 2, 18, 2)
ONE, FIRST = (1, 1, 1, 1), (2, 1, 1, 1)
OF_SIMMIM = {"depths": FIRST, "window_size": 12}  # at 192 px the last stage is smaller than the window
PUBLISHED = [
    Twin("vit_tiny_patch16_224", "vit", vit(192, 12, 3)),
    Twin("vit_small_patch16_224", "vit", vit(384, 12, 6)),
    Twin("vit_base_patch16_224", "vit", vit(768, 12, 12)),
    Twin("vit_base_patch32_224", "vit", vit(768, 12, 12, patch=32)),
    Twin("vit_large_patch16_224", "vit", vit(1024, 24, 16)),
    Twin("vit_huge_patch14_224", "vit", vit(1280, 32, 16, patch=14)),
    Twin("beit_base_patch16_224", "beit", vit(768, 12, 12, bias="block"), options=TOKEN),
    Twin("beit_base_patch16_224", "beit", vit(768, 12, 12, bias="shared"), options=SHARED),
    Twin("beit_large_patch16_224", "beit", vit(1024, 24, 16, bias="block", layer_scale=1e-5), options=TOKEN),
    Twin("swin_tiny_patch4_window7_224", "swin", swin(96, 3, 7, T)),
    Twin("swin_small_patch4_window7_224", "swin", swin(96, 3, 7, B)),
    Twin("swin_base_patch4_window7_224", "swin", swin(128, 4, 7, B)),
    Twin("swin_base_patch4_window12_384", "swin", swin(128, 4, 12, B), (384, 384)),
    Twin("swin_large_patch4_window7_224", "swin", swin(192, 6, 7, B)),
    Twin("swinv2_tiny_window8_256", "swin_v2", swin(96, 3, 8, T), (256, 256)),
    Twin("swinv2_base_window12_192", "swin_v2", swin(128, 4, 12, B), (192, 192)),
    Twin(
        "swinv2_base_window12to16_192to256",
        "swin_v2",
        swin(128, 4, 16, B, pretrained_windows=(12, 12, 12, 6)),
        (256, 256),
    ),
    Twin("swinv2_large_window12_192", "swin_v2", swin(192, 6, 12, B), (192, 192)),
]
SHALLOW = [  # real widths and heads; the tiny ones also whole, the rest as deep as windows that shift need
    Twin("vit_tiny_patch16_224", "vit", vit(192, 12, 3)),
    Twin("vit_tiny_patch16_224", "vit", vit(192, 12, 3), (96, 160)),
    Twin("vit_base_patch16_224", "vit", vit(768, 1, 12), options={"depth": 1}),
    Twin("vit_large_patch16_224", "vit", vit(1024, 1, 16), (128, 64), {"depth": 1}),
    Twin("vit_huge_patch14_224", "vit", vit(1280, 1, 16, patch=14), (84, 112), {"depth": 1}),
    Twin("beit_base_patch16_224", "beit", vit(768, 1, 12, bias="block"), options={**TOKEN, "depth": 1}),
    Twin("beit_base_patch16_224", "beit", vit(768, 2, 12, bias="shared"), (96, 160), {**SHARED, "depth": 2}),
    Twin("swin_tiny_patch4_window7_224", "swin", swin(96, 3, 7, T)),
    Twin(
        "swin_tiny_patch4_window7_224", "swin", swin(96, 3, 8, FIRST), (128, 256), {"depths": FIRST, "window_size": 8}
    ),
    Twin("swin_base_patch4_window7_224", "swin", swin(128, 4, 12, FIRST), (192, 192), OF_SIMMIM),
    Twin("swinv2_tiny_window8_256", "swin_v2", swin(96, 3, 8, T), (256, 256)),
    Twin("swinv2_tiny_window8_256", "swin_v2", swin(96, 3, 8, FIRST), (128, 256), {"depths": FIRST}),
    Twin("swinv2_base_window12_192", "swin_v2", swin(128, 4, 12, FIRST), (192, 192), {"depths": FIRST}),
    Twin(
        "swinv2_base_window12to16_192to256",
        "swin_v2",
        swin(128, 4, 16, FIRST, pretrained_windows=(12, 12, 12, 6)),
        (256, 256),
        {"depths": FIRST},
    ),
]
SCORED = [
    Twin("vit_tiny_patch16_224", "vit", vit(192, 2, 3, norm=False), (96, 160), {"global_pool": "avg", "depth": 2}),
    Twin("beit_base_patch16_224", "beit", vit(768, 1, 12, norm=False, bias="block"), (96, 160), {"depth": 1}),
    Twin("swin_tiny_patch4_window7_224", "swin", swin(96, 3, 3, ONE), (96, 192), {"depths": ONE, "window_size": 3}),
    Twin("swinv2_tiny_window8_256", "swin_v2", swin(96, 3, 3, ONE), (96, 192), {"depths": ONE, "window_size": 3}),
]


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """The model with noise on every weight, of a size that shows: no table and no layer scale is uniform any more."""
    noise = generator(seed)
    with torch.no_grad():
        for weight in model.parameters():
            size = weight[0].numel() ** -0.5 if weight.ndim in (2, 4) else 0.3
            weight.add_(size * torch.randn(weight.shape, generator=noise, dtype=weight.dtype))
    return model


NUMBERS = (bool, int, float, tuple, str)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}


def settings(model: nn.Module) -> dict[str, tuple]:
    """The kind of each module below the model and of its head, and its numbers: heads, windows, shifts, eps, rates."""
    return {
        name: (
            type(module).__name__,
            {key: value for key, value in vars(module).items() if isinstance(value, NUMBERS) and key[0] != "_"},
        )
        for name, module in model.named_modules()
        if name and not name.startswith("head")
    }


def tokens_of(encoder: Encoder, img_BCHW: Tensor) -> Tensor:
    """Prefix tokens and patches, (B, N, D)."""
    features = encoder(img_BCHW)
    prefix = [] if features.prefix_BKD is None else [features.prefix_BKD]
    assert sum(part.shape[1] for part in prefix) == encoder.spec.num_prefix
    return torch.cat([*prefix, features.tokens_BND], dim=1)


def tokens_of_timm(model: nn.Module, img_BCHW: Tensor) -> Tensor:
    """The same of timm's; a Swin's come as a map (B, h, w, D)."""
    features = model.forward_features(img_BCHW)
    return features.flatten(1, 2) if features.ndim == 4 else features


def test_every_encoder_has_twins():
    for twins in (PUBLISHED, SHALLOW, SCORED):
        assert {twin.encoder for twin in twins} == {*members(Encoder)} - {"timm"}  # which is timm's own


@pytest.mark.parametrize(
    "twin",
    [pytest.param(twin, marks=pytest.mark.slow if re.search("large|huge", twin.name) else []) for twin in PUBLISHED],
    ids=str,
)
def test_encoder_of_published_size_has_the_parts_of_timms(twin):
    with torch.device("meta"), Undrawn():
        ours, theirs = twin.ours(drop_path=0.1).backbone, twin.theirs(drop_path=0.1)
    assert shapes(ours) == shapes(theirs)
    actual, expected = settings(ours), settings(theirs)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name] == expected[name], name


def sized(twin: Twin):
    """Slow is what is wider than the tiny models, of a published size, or a whole Swin: two blocks shift windows."""
    large = re.search("swin.*_base|large|huge", twin.name) or twin.keys.get("depths") == T or twin.size == (224, 224)
    return pytest.param(twin, marks=pytest.mark.slow) if large else twin


@pytest.mark.parametrize("twin", list(map(sized, SHALLOW)), ids=str)
@torch.no_grad()
def test_encoder_features_are_timms(twin):
    """With timm's weights in ours in float64, then with ours in timm's in float32."""
    ours, theirs, img = twin.ours(), twin.theirs(), images(1, ImageSpec(3, *twin.size), dtype=torch.float64)
    ours.backbone.load_state_dict(shaken(theirs, seed=1).state_dict(), strict=True)
    tokens, expected = tokens_of(ours.double(), img), tokens_of_timm(theirs.double(), img)
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-10)
    theirs.load_state_dict(shaken(ours, seed=2).backbone.state_dict(), strict=True)
    tokens_fp32 = tokens_of(ours.float(), img.float())
    torch.testing.assert_close(tokens_fp32, tokens_of_timm(theirs.float(), img.float()), rtol=0, atol=1e-5)
    assert (tokens_fp32 - tokens).abs().max() > 0.1  # other weights


@pytest.mark.parametrize("twin", SCORED, ids=str)
@torch.no_grad()
def test_finetuned_classifier_scores_as_timms_model(twin):
    """Pooling, norm and linear layer included, under timm's names for these."""
    ours = finetuned_predictor(twin.ours(), 10, norm="none" if twin.keys.get("norm", True) else "layer").eval()
    theirs, img = shaken(twin.theirs(classes=10), seed=1), images(2, ImageSpec(3, *twin.size), dtype=torch.float64)
    last = "head.fc." if "swin" in twin.encoder else "head."
    names = {f"encoder.backbone.{name}": name for name in ours.encoder.backbone.state_dict()}
    names |= {f"readouts.0.norm.{name}": f"fc_norm.{name}" for name in ours.readouts[0].norm.state_dict()}
    names |= {f"readouts.0.linear.{name}": f"{last}{name}" for name in ("weight", "bias")}
    weights = theirs.state_dict()
    assert {*names.values()} == {*weights}
    ours.load_state_dict({our_name: weights[name] for our_name, name in names.items()}, strict=True)
    scores_BK, expected_BK = ours.double()(img)[0], theirs.double()(img)
    assert expected_BK.std() > 0.1
    torch.testing.assert_close(scores_BK, expected_BK, rtol=0, atol=1e-10)
