"""Dropping in every family of transformers that can: the contract of each, at a small size, in float64.

Shapes: B batch, C channels, H W pixels, h w tokens high and wide, M kept tokens, N tokens, K prefix tokens, D width.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import pytest
import timm
import torch
import yaml
from small_models import generator, images, shaken
from torch import Tensor
from visible_attention import attention_to_visible

from mim.encoders.timm_model import Timm
from mim.engine.modes import recompute_activations
from mim.maskers.random import Random
from mim.structures import Features, ImageSpec, PatchMask

NARROW = ("embed_dim=16", "num_heads=2", "depth=2")
PIXELS = ("embed_dim=16", "num_heads_outer=2", "depth=2", "inner_dim=8", "num_heads_inner=2")
UNITS = ("embed_dim=8", "stages=[1,1,2,1]")
GEMMA = ("head_dim=8", "intermediate_size=16", "position_embedding_size=12")


@dataclass(frozen=True)
class Case:
    model: str
    options: tuple[str, ...] = NARROW
    size: tuple[int, int] = (48, 64)
    tolerance: float = 1e-9  # its norms compute in float32 where it is larger


CASES = {
    "class attention": Case("cait_xxs24_224"),
    "pixels of patches": Case("tnt_s_patch16_224", PIXELS),
    "pixels of patches, legacy": Case("tnt_s_legacy_patch16_224", PIXELS),
    "bias of each block": Case("beit_base_patch16_224"),
    "shared bias": Case("beit_base_patch16_224", (*NARROW, "use_rel_pos_bias=false", "use_shared_rel_pos_bias=true")),
    "both biases": Case("beitv2_base_patch16_224", (*NARROW, "use_shared_rel_pos_bias=true", "use_abs_pos_emb=true")),
    "no bias": Case("beit_base_patch16_224", (*NARROW, "use_rel_pos_bias=false", "use_abs_pos_emb=true")),
    "MLP of each block": Case("vit_relpos_small_patch16_224"),
    "MLP, class token": Case("vit_relpos_base_patch16_cls_224"),
    "MLP, norms last": Case("vit_relpos_small_patch16_rpn_224"),
    "shared MLP": Case("vit_srelpos_small_patch16_224"),
    "table, class token": Case("vit_relpos_base_patch16_cls_224", (*NARROW, "rel_pos_type=bias")),
    "shared table": Case("vit_relpos_small_patch16_224", (*NARROW, "rel_pos_type=bias", "shared_rel_pos=true")),
    "offsets": Case("convit_tiny", ("embed_dim=4", "num_heads=4", "depth=3", "local_up_to_layer=2"), (64, 64)),
    "flexible": Case("naflexvit_base_patch16_gap"),
    "flexible, map": Case("naflexvit_base_patch16_map"),
    "flexible, by axis": Case("naflexvit_base_patch16_parfac_gap"),
    "flexible, class tokens": Case("naflexvit_base_patch16_radio_v3"),
    "flexible, rotary": Case("naflexvit_base_patch16_gap", (*NARROW, "rope_type=dinov3", "pos_embed=none")),
    "flexible, rotary by block": Case("naflexvit_base_patch16_gap", (*NARROW, "rope_type=mixed")),
    "flexible, own dropping": Case("naflexvit_base_patch16_gap", (*NARROW, "rope_type=axial", "patch_drop_rate=0.5")),
    "Qwen 3": Case("qwen3_vit_88m_enc"),
    "Qwen 3, classifier": Case("qwen3_vit_88m"),
    "DeepSeek": Case("deepseek_vit_412m_enc", (*NARROW, "out_features=8"), (42, 56), 1e-4),
    "DeepSeek, classifier": Case("deepseek_vit_412m", NARROW, (42, 56), 1e-4),
    "Gemma 4": Case("gemma4_vit_167m_enc", (*NARROW, *GEMMA), (48, 96)),
    "Gemma 4, classifier": Case("gemma4_vit_167m", (*NARROW, *GEMMA)),
    "mask units": Case("hiera_tiny_224", UNITS, (64, 96)),
    "mask units of four tokens": Case("hiera_tiny_224", (*UNITS, "q_pool=2"), (64, 96)),
    "mask units, windows' positions": Case("hiera_small_abswin_256", UNITS, (96, 64)),
    "DINOv3": Case("vit_small_patch16_dinov3"),
    "EVA-02": Case("eva02_tiny_patch14_224", NARROW, (42, 56)),
    "rotary of each block": Case("vit_small_patch16_rope_mixed_224"),
    "Perception Encoder": Case("vit_pe_core_tiny_patch16_384"),
    "registers, rotary": Case("vit_betwixt_patch16_rope_reg4_gap_256"),
    "distilled": Case("deit_tiny_distilled_patch16_224"),
    "DINOv2": Case("vit_small_patch14_reg4_dinov2", NARROW, (42, 56)),
    "two branches a block": Case("vit_small_patch16_18x2_224"),
    "registers, sums of branches": Case("vit_betwixt_patch16_reg4_gap_256"),
}
MORE = {  # of a family that another case shows, too
    *("pixels of patches, legacy", "shared bias", "no bias", "MLP, class token", "shared table", "flexible, map"),
    *("flexible, by axis", "flexible, own dropping", "Qwen 3, classifier", "DeepSeek", "Gemma 4, classifier"),
    *("mask units, windows' positions", "registers, rotary", "DINOv2", "two branches a block"),
    "registers, sums of branches",
}
EACH = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in MORE else case for case in CASES]
)


@cache
def encoder_of(case: str) -> Timm:
    """With weights of noise."""
    model = CASES[case]
    torch.manual_seed(0)
    image = ImageSpec(3, *model.size)
    return shaken(Timm(image, model=model.model, hidden="drop", options=model.options)).double().eval()


def plain(encoder: Timm, case: str) -> torch.nn.Module:
    """timm's own model with the weights of an encoder."""
    options = {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in CASES[case].options)}
    sized = {} if "gemma" in CASES[case].model else {"img_size": CASES[case].size}
    backbone = timm.create_model(CASES[case].model, num_classes=0, **sized, **options).double().eval()
    backbone.load_state_dict(encoder.backbone.state_dict())
    return backbone


def masks(encoder: Timm, batch: int = 2) -> PatchMask:
    """Of each sample another one; the first sample hides the last row and the last column of cells."""
    mask = Random(encoder.image, cell=encoder.spec.patch, ratio=0.5).sample(batch, generator(5), torch.device("cpu"))
    high, wide = mask.hidden_BHW.shape[1:]
    edge_HW = torch.zeros(high, wide, dtype=torch.bool)
    edge_HW[-1], edge_HW[:, -1] = True, True
    visible = int((~edge_HW).sum())
    hidden_BHW = mask.hidden_BHW.clone()
    order = torch.rand(high * wide, generator=generator(1)).argsort()
    hidden_BHW[0] = edge_HW
    hidden_BHW[1:] = (order >= visible).view(high, wide)
    return PatchMask(hidden_BHW, visible, mask.draw_B)


def noise(encoder: Timm, seed: int = 0) -> Tensor:
    return images(2, encoder.image, seed, torch.float64)


def dense(encoder: Timm, case: str, img_BCHW: Tensor, mask: PatchMask) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """timm's whole model with attention to visible tokens alone: the last map, the maps of stages, and the prefix."""
    backbone, grid = plain(encoder, case), encoder.layout.grid
    zeroed_BCHW = torch.where(mask.at(*img_BCHW.shape[2:])[:, None], 0.0, img_BCHW)
    hidden_BN, cells_BU = mask.at(*grid).flatten(1), mask.hidden_BHW.flatten(1)

    def hidden_keys(count: int) -> Tensor | None:
        if CASES[case].model.startswith("hiera"):  # in timm's order the unit is the fastest index
            units = cells_BU.shape[1]
            return None if count % units else cells_BU.repeat(1, count // units)  # None within a unit
        ahead = count - hidden_BN.shape[1]
        return torch.nn.functional.pad(hidden_BN, (ahead, 0)) if ahead in (0, encoder.layout.num_prefix) else None

    def drop_shares(module: torch.nn.Module, args: tuple[Tensor, ...], shares: Tensor) -> Tensor:
        hidden_BK = hidden_keys(shares.shape[-1])  # CaiT mixes heads behind its softmax
        return shares if hidden_BK is None else shares.masked_fill(hidden_BK[:, None, None], 0.0)

    for name, module in backbone.named_modules():
        if name.endswith("attn_drop"):
            module.register_forward_hook(drop_shares)
    with attention_to_visible(hidden_keys):
        output, maps = backbone.forward_intermediates(zeroed_BCHW)
        features = encoder.layout.features(maps[-1] if encoder.layout.order == "stage" else output)
    return features.tokens_BND, list(maps), features.prefix_BKD


def everything(features: Features) -> list[Tensor]:
    prefix = [] if features.prefix_BKD is None else [features.prefix_BKD]
    return [features.tokens_BND, *features.stages_BDhw, *prefix]


def summed(features: Features) -> Tensor:
    return sum(each.square().sum() for each in everything(features))  # type: ignore[return-value]


@pytest.mark.slow
@EACH
@torch.no_grad()
def test_drop_equals_the_whole_model_with_attention_to_visible_tokens(case):
    encoder, tolerance = encoder_of(case), CASES[case].tolerance
    img, mask, numbers = noise(encoder), masks(encoder), tuple(range(len(encoder.spec.stages)))
    features = encoder(img, mask, numbers)
    tokens_BND, maps, prefix_BKD = dense(encoder, case, img, mask)
    visible_BN = ~mask.at(*encoder.spec.grid).flatten(1)
    expected = tokens_BND[visible_BN].view_as(features.tokens_BND)
    assert expected.std() > 0.01
    torch.testing.assert_close(features.tokens_BND, expected, rtol=0, atol=tolerance)
    assert features.kept_BN.tolist() == [visible.nonzero().flatten().tolist() for visible in visible_BN]
    assert torch.equal(features.draw_B, mask.draw_B)
    if prefix_BKD is not None:
        torch.testing.assert_close(features.prefix_BKD, prefix_BKD, rtol=0, atol=tolerance)
    for map_BDhw, whole_BDhw in zip(features.stages_BDhw, maps, strict=True):
        hidden_B1hw = mask.at(*whole_BDhw.shape[2:])[:, None]
        torch.testing.assert_close(map_BDhw, torch.where(hidden_B1hw, 0.0, whole_BDhw), rtol=0, atol=tolerance)


@EACH
@torch.no_grad()
def test_whole_images_give_the_features_of_timms_own_model(case):
    encoder = encoder_of(case)
    img, backbone = noise(encoder), plain(encoder, case)
    encoder(img, masks(encoder))  # leaves nothing behind
    order = encoder.layout.order
    output = backbone.forward_intermediates(img)[1][-1] if order == "stage" else backbone.forward_features(img)
    torch.testing.assert_close(encoder(img).tokens_BND, encoder.layout.features(output).tokens_BND, rtol=0, atol=1e-12)
    assert encoder.backbone.state_dict().keys() == backbone.state_dict().keys()


@EACH
def test_every_weight_is_where_its_name_says(case):
    """torch.func.functional_call and the shards of several devices find it there."""
    encoder = encoder_of(case)
    assert [name for name, weight in encoder.named_parameters() if attrgetter(name)(encoder) is not weight] == []


@EACH
def test_drop_is_blind_to_hidden_pixels_in_features_and_gradients(case):
    encoder = encoder_of(case)
    img, mask = noise(encoder), masks(encoder)
    hidden_B1HW = mask.at(*img.shape[2:])[:, None]
    results = []
    for value in (img, torch.tensor(torch.nan, dtype=torch.float64)):
        encoder.zero_grad()
        features = encoder(torch.where(hidden_B1HW, value, img), mask, (0, len(encoder.spec.stages) - 1))
        summed(features).backward()
        gradients = [parameter.grad for parameter in encoder.parameters() if parameter.requires_grad]
        results.append([*everything(features), *gradients])
    encoder.zero_grad()
    assert all(value.isfinite().all() for value in results[0])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@EACH
def test_drop_gives_every_parameter_a_gradient_also_where_blocks_are_recomputed(case):
    encoder = deepcopy(encoder_of(case))
    img, mask = noise(encoder), masks(encoder)
    other = PatchMask(mask.hidden_BHW.flip(0), mask.visible, mask.draw_B)
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            recompute_activations(encoder.blocks())
        encoder.zero_grad()
        first, second = encoder(img, mask), encoder(noise(encoder, 1), other)  # two views before one backward pass
        (summed(first) + summed(second) + summed(encoder(img))).backward()
        trained = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert [name for name, gradient in trained.items() if gradient is None or not gradient.any()] == []
        gradients.append(trained)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["flexible, class tokens", "Gemma 4", "mask units of four tokens", "offsets"])
@torch.no_grad()
def test_replacing_in_these_families_leaves_whole_images_and_sees_no_hidden_pixel(case):
    torch.manual_seed(0)
    image = ImageSpec(3, *CASES[case].size)
    model = Timm(image, model=CASES[case].model, hidden="replace", options=CASES[case].options)
    encoder = shaken(model).double().eval()
    img, mask, backbone = noise(encoder), masks(encoder), plain(encoder, case)
    order = encoder.layout.order
    output = backbone.forward_intermediates(img)[1][-1] if order == "stage" else backbone.forward_features(img)
    assert torch.equal(encoder(img).tokens_BND, encoder.layout.features(output).tokens_BND)
    hidden_B1HW = mask.at(*img.shape[2:])[:, None]
    tokens_BND = encoder(img, mask).tokens_BND
    assert torch.equal(tokens_BND, encoder(torch.where(hidden_B1HW, torch.nan, img), mask).tokens_BND)
    assert not torch.allclose(tokens_BND, encoder(img).tokens_BND)


@pytest.mark.parametrize(
    ("model", "options", "size", "reason"),
    [
        (
            "qwen3_vit_88m_merge",
            NARROW,
            (64, 64),
            "its encoder_pool merge merges neighbouring tokens of the whole grid",
        ),
        (
            "deepseek_vit_412m_align",
            (*NARROW, "out_features=8"),
            (42, 42),
            "its encoder_pool align merges neighbouring tokens",
        ),
        (
            "hiera_tiny_224",
            ("embed_dim=8", "mask_unit_size=[4,4]"),
            (64, 64),
            "mask units of 4x4 patches are not the 8x8",
        ),
        ("samvit_base_patch16", ("embed_dim=16", "num_heads=2", "depth=2"), (64, 64), "every token of the grid"),
    ],
)
def test_drop_is_refused_with_the_reason_and_the_ways_that_work(model, options, size, reason):
    with pytest.raises(ValueError, match=rf"drop is not possible with .*{reason}.*Use replace"):
        Timm(ImageSpec(3, *size), model=model, hidden="drop", options=options)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["both biases", "offsets", "mask units of four tokens"])
def test_blocks_that_drop_compile_without_graph_breaks_also_where_they_are_recomputed(case):
    torch._dynamo.reset()
    encoder = deepcopy(encoder_of(case)).float().train()
    recompute_activations(encoder.blocks())
    for block in encoder.blocks():
        block.forward = torch.compile(block.forward, fullgraph=True, backend="eager")
    img, mask = noise(encoder).float(), masks(encoder)
    for _ in range(2):
        summed(encoder(img, mask)).backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        summed(encoder(img, mask)).backward()
