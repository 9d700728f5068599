"""Shapes: B batch, C channels, H W pixels, D width, h w entries of a map, N visible places."""

import copy
import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, Conv2dSame, GroupNormAct, SEModule
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.space_to_depth import SpaceToDepth
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.utils.checkpoint import checkpoint

from mim.encoders.hiding.place_check import objection_to
from mim.encoders.hiding.sparse_layers import SparseLayers
from mim.encoders.hiding.visible_places import VisiblePlaces
from mim.encoders.timm_model import Timm
from mim.engine.modes import recompute_activations
from mim.structures import ImageSpec, PatchMask

IMAGE = ImageSpec(3, 96, 64)
GRID = (3, 2)  # cells of 32 px
HIDDEN = torch.tensor([[[1, 0], [0, 1], [1, 0]], [[0, 0], [1, 1], [0, 1]]], dtype=torch.bool)
MODELS = ["test_resnet", "test_convnext2", "test_efficientnet", "test_efficientnet_gn", "test_byobnet"]


@functools.cache
def made(model: str) -> Timm:
    torch.manual_seed(0)
    encoder = Timm(IMAGE, model=model, hidden="sparse").double()
    for name, parameter in encoder.named_parameters():  # weights that start at 0 have an effect too
        nn.init.normal_(parameter, float(name.endswith("weight") and parameter.ndim == 1), 0.2)
    return encoder


def encoder_of(model: str) -> Timm:
    return copy.deepcopy(made(model))


def mask() -> PatchMask:
    return PatchMask.from_tensor(HIDDEN, 2)


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden_of(map_BDhw: torch.Tensor) -> torch.Tensor:
    """The mask (B, 1, h, w) at the resolution of a map."""
    return F.interpolate(HIDDEN[:, None].double(), size=map_BDhw.shape[-2:], mode="nearest") > 0


def visible_rows(map_BDhw: torch.Tensor) -> list[torch.Tensor]:
    """The visible places (D, N) of each sample of a map."""
    hidden_B1hw = hidden_of(map_BDhw)
    return [map_Dhw[:, ~hidden_1hw[0]] for map_Dhw, hidden_1hw in zip(map_BDhw, hidden_B1hw, strict=True)]


def dense_layer(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
    """The output of a layer of a dense net, computed anew with what is visible."""
    x = inputs[0]
    column = (slice(None), None, None)
    if isinstance(module, nn.Conv2d) and x.shape[-1] > 1:
        return module.forward(x.masked_fill(hidden_of(x), 0.0))
    if isinstance(module, nn.MaxPool2d):
        return module.forward(x.masked_fill(hidden_of(x), float("-inf"))).masked_fill(hidden_of(output), 0.0)
    if isinstance(module, nn.BatchNorm2d):
        rows = torch.cat(visible_rows(x), dim=1)
        mean, var = rows.mean(1)[column], rows.var(1, unbiased=False)[column]
        normalised = (x - mean) / (var + module.eps).sqrt() * module.weight[column] + module.bias[column]
        return module.act(normalised) if hasattr(module, "act") else normalised
    if isinstance(module, GroupNormAct):
        normalised = []
        for map_Dhw, rows in zip(x, visible_rows(x), strict=True):
            groups = rows.reshape(module.num_groups, -1)
            mean, var = groups.mean(1), groups.var(1, unbiased=False)
            repeat = len(map_Dhw) // module.num_groups
            mean, var = mean.repeat_interleave(repeat), var.repeat_interleave(repeat)
            normalised.append((map_Dhw - mean[column]) / (var[column] + module.eps).sqrt())
        return module.act(torch.stack(normalised) * module.weight[column] + module.bias[column])
    if isinstance(module, GlobalResponseNorm):
        x = x.permute(0, 3, 1, 2)
        norm_BD = torch.stack([rows.norm(dim=1) for rows in visible_rows(x)])
        scale = norm_BD / (norm_BD.mean(1, keepdim=True) + module.eps) * module.weight
        return (x + x * scale[..., None, None] + module.bias[column]).permute(0, 2, 3, 1)
    if isinstance(module, (SqueezeExcite, SEModule)):
        mean = torch.stack([rows.mean(1) for rows in visible_rows(x)])[..., None, None]
        reduce, act = (module.conv_reduce, module.act1) if hasattr(module, "act1") else (module.fc1, module.act)
        expand = module.conv_expand if hasattr(module, "act1") else module.fc2
        return x * expand(act(reduce(mean))).sigmoid()
    return None


def dense_tokens(encoder: Timm, img_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """Visible places (D, N) of each sample, from timm's own model on whole maps with `dense_layer`."""
    settings = timm.create_model(encoder_name(encoder), num_classes=0).double()
    settings.load_state_dict(encoder.backbone.state_dict())
    for module in settings.modules():
        module.register_forward_hook(dense_layer)
    return visible_rows(settings.train().forward_features(img_BCHW))


def encoder_name(encoder: Timm) -> str:
    return encoder.backbone.pretrained_cfg["architecture"]


@pytest.mark.parametrize("model", MODELS)
def test_sparse_equals_a_dense_computation_that_masks_anew_and_normalises_what_is_visible(model):
    encoder, img_BCHW = encoder_of(model), images()
    expected = torch.stack([rows.T for rows in dense_tokens(encoder, img_BCHW)])
    features = encoder(img_BCHW, mask())
    torch.testing.assert_close(features.tokens_BND, expected)
    assert features.kept_BN.tolist() == [[1, 2, 5], [0, 1, 4]]


@pytest.mark.parametrize("value", [float("nan"), 3.0])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext2"])
def test_hidden_pixels_have_no_effect_on_features_or_gradients(model, value):
    results = []
    for filled in (images(), images().masked_fill(hidden_of(images()), value)):
        encoder = encoder_of(model)
        stages = range(len(encoder.spec.stages))
        features = encoder(filled, mask(), stages)
        for stage, map_BDhw in zip(encoder.spec.stages, features.stages_BDhw, strict=True):
            assert map_BDhw.shape == (2, stage.width, 96 // stage.stride, 64 // stage.stride)
            assert not map_BDhw.masked_select(hidden_of(map_BDhw)).any()
        sum(map_BDhw.square().sum() for map_BDhw in features.stages_BDhw).backward()
        gradients = {name: each.grad for name, each in encoder.named_parameters() if each.requires_grad}
        assert all(gradient is not None and gradient.any() for gradient in gradients.values()), gradients.keys()
        results.append((features.tokens_BND, features.stages_BDhw, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_running_statistics_are_those_of_visible_places():
    encoder, img_BCHW = encoder_of("test_resnet"), images()
    conv, norm = encoder.backbone.conv1[0], encoder.backbone.conv1[1]
    encoder(img_BCHW, mask())
    dense = F.conv2d(img_BCHW.masked_fill(hidden_of(img_BCHW), 0.0), conv.weight, stride=conv.stride, padding=1)
    rows = torch.cat(visible_rows(dense), dim=1)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(1))


def test_whole_images_after_hidden_ones_are_timms_forward_features():
    encoder, img_BCHW = encoder_of("test_efficientnet").eval(), images()
    plain = timm.create_model("test_efficientnet", num_classes=0).double().eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    encoder(img_BCHW, mask())
    tokens_BND = encoder(img_BCHW).tokens_BND
    assert torch.equal(tokens_BND.mT.reshape(2, -1, *GRID), plain.forward_features(img_BCHW))
    assert set(encoder.stage_maps(img_BCHW)) == {2, 4, 8, 16, 32}


def test_recomputed_gradients_are_equal():
    gradients = []
    for recomputed in (False, True):
        encoder = encoder_of("test_convnext2")
        for block in encoder.blocks() if recomputed else []:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        encoder(images(), mask()).tokens_BND.square().sum().backward()
        gradients.append({name: each.grad for name, each in encoder.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_recomputed_blocks_see_the_mask_of_their_own_forward_pass():
    other = PatchMask(HIDDEN.flip(0), 3)
    gradients = []
    for recomputed in (False, True):
        encoder = encoder_of("test_convnext2")
        if recomputed:
            recompute_activations(encoder.blocks())
        outputs = [encoder(images(seed), each).tokens_BND for seed, each in enumerate((mask(), other))]
        encoder(images(2))
        sum(tokens_BND.square().sum() for tokens_BND in outputs).backward()
        gradients.append({name: each.grad for name, each in encoder.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_blocks_equal_and_do_not_recompile():
    encoder, compiled = encoder_of("test_convnext2"), encoder_of("test_convnext2")
    for block in compiled.blocks():
        block.forward = torch.compile(block.forward, fullgraph=True, backend="aot_eager")
    for step in range(5):
        with torch.compiler.set_stance("fail_on_recompile" if step > 1 else "default"):
            hidden_BHW = torch.stack([HIDDEN[0].roll(step, 0), HIDDEN[1].roll(step, 1)])
            results = [each(images(step), PatchMask.from_tensor(hidden_BHW, 2)) for each in (encoder, compiled)]
            torch.testing.assert_close(results[0].tokens_BND, results[1].tokens_BND)
            results[1].tokens_BND.square().sum().backward()


def average_of_visible(x: torch.Tensor) -> torch.Tensor:
    """Over windows of 3 x 3."""
    visible_B1HW = (~hidden_of(x)).double()
    return F.avg_pool2d(x * visible_B1HW, 3, 1, 1) / F.avg_pool2d(visible_B1HW, 3, 1, 1).clamp(min=0.01)


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), 0.0, None),
    "conv_same": (Conv2dSame(4, 6, 3, stride=2), 0.0, None),
    "dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), 0.0, None),
    "one_by_one_with_stride": (nn.Conv2d(4, 6, 1, stride=2), 0.0, None),
    "patches": (nn.Conv2d(4, 6, 2, stride=2), 0.0, None),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), 0.0, None),
    "transposed_patches": (nn.ConvTranspose2d(4, 6, 2, stride=2), 0.0, None),
    "max": (nn.MaxPool2d(3, 2, padding=1), float("-inf"), None),
    "max_same": (MaxPool2dSame(3, 2), float("-inf"), None),
    "max_behind_border": (nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2)), 0.0, None),
    "average_with_border": (nn.AvgPool2d(3, 1, padding=1), 0.0, None),
    "average_without_border": (nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), 0.0, average_of_visible),
    "average_of_cells": (nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), 0.0, None),
    "blur": (BlurPool2d(4), 0.0, None),
    "space_to_depth": (SpaceToDepth(), 0.0, None),
    "depth_to_space": (nn.PixelShuffle(2), 0.0, None),
    "nearest": (nn.Upsample(scale_factor=2, mode="nearest"), 0.0, None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_sees_hidden_places_as_it_sees_the_border(name):
    layer, fill, expectation = LAYERS[name]
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, 4, 12, 8, dtype=torch.float64)
    expected = (expectation or layer)(x.masked_fill(hidden_of(x), fill))
    visible = VisiblePlaces(mask(), GRID, 8)
    SparseLayers(layer).visible = visible
    hooked = layer(visible.gather(x))
    torch.testing.assert_close(hooked, visible.gather(expected))


class Shuffled(VisiblePlaces):
    """Visible places in a random order."""

    @staticmethod
    def order(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(count))

    def gather(self, map_BDhw):
        places_BDN1 = super().gather(map_BDhw)
        return places_BDN1[:, :, self.order(places_BDN1.shape[2])]

    def together(self, cells):
        places_BDN1 = super().together(cells)
        return places_BDN1[:, :, self.order(places_BDN1.shape[2])]

    def scatter(self, places_BDN1, fill=0.0):
        return super().scatter(places_BDN1[:, :, self.order(places_BDN1.shape[2]).argsort()], fill)

    def apart(self, places_BDN1):
        return super().apart(places_BDN1[:, :, self.order(places_BDN1.shape[2]).argsort()])


ANY_ORDER = ["test_efficientnet_evos", "test_nfnet"]
ANY_ORDER_SLOW = ["fastvit_t8", "swiftformer_xs", "iformer_t", "lowformer_b0", "skresnet18", "gcresnet33ts"]


@pytest.mark.parametrize(
    "model", [*ANY_ORDER, *(pytest.param(name, marks=pytest.mark.slow) for name in ANY_ORDER_SLOW)]
)
def test_between_layers_that_see_the_map_the_order_of_places_has_no_effect(model):
    torch.manual_seed(0)
    backbone = timm.create_model(model, num_classes=0).double()
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
    layers, results = SparseLayers(backbone), []
    for places in (VisiblePlaces, Shuffled):
        layers.visible = visible = places(mask(), GRID, 32)
        _, maps = backbone.forward_intermediates(visible.gather(images()))
        results.append([visible.scatter(each) for each in maps])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("test_vit", "PatchEmbed needs all places of the map"),
        ("test_coatnet", "Attention2d needs all places"),
        ("test_maxvit", "PartitionAttentionCl needs all places"),
        pytest.param("inception_v3", "makes a map of 255x255, which 16x16 cells do not", marks=pytest.mark.slow),
        pytest.param("hgnetv2_b0", "StemV2 pads the map", marks=pytest.mark.slow),
        pytest.param("davit_tiny", "Stem pads the map", marks=pytest.mark.slow),
        pytest.param("edgenext_xx_small", "PositionalEncodingFourier computes positions", marks=pytest.mark.slow),
        pytest.param("mobilevit_xxs", "MobileVitBlock", marks=pytest.mark.slow),
    ],
)
def test_refusal_names_the_layer_that_needs_the_whole_map(model, reason):
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert reason in objection_to(backbone)


def test_mask_with_unequal_counts_is_refused():
    hidden_BHW = HIDDEN.clone()
    hidden_BHW[0, 0, 1] = True
    with pytest.raises(ValueError, match="same number of visible cells"):
        encoder_of("test_resnet")(images(), PatchMask.from_tensor(hidden_BHW, 2))
