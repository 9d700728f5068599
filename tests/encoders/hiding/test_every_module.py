"""What every way of hiding keeps to in models of timm: in its own small `test_*` models, and in the smallest of most of
its modules.

Shapes: B batch, C channels, H W pixels, N tokens, D width.
"""

import copy
import os
from dataclasses import dataclass
from functools import lru_cache

import pytest
import timm
import torch
import yaml
from processes import ROOT
from small_models import generator, images
from torch import Tensor, nn

from mim.encoders.timm_model import BACKBONE, Timm
from mim.engine.modes import recompute_activations
from mim.maskers.random import Random
from mim.structures import Features, ImageSpec, PatchMask

ROUNDING = 1e-11  # of the largest gradient
WITHOUT_EFFECT = (  # by mathematics
    # a softmax takes no notice of what is the same for all keys
    *(
        ".k.bias",
        ".k.bn.bias",
        ".k.conv.bias",
        "rel_pos.mlp.fc2.bias",
        "attn.proj_l.bias",
        "attn.norm_k.bias",
        "attn.pos_proj.bias",
    ),
    *("talking_head1.bias", "mixer.A"),
    *("attn.attn.norm1.weight", "attn.attn.norm2.weight"),  # a LayerNorm of one channel gives its bias
)


EXHAUSTIVE = bool(os.environ.get("MIM_EXHAUSTIVE"))  # also replacing in modules with another way; the fast tests do
DROP, SPARSE, REPLACE = ("drop", "replace"), ("sparse", "replace"), ("replace",)
OWN = {  # timm's models for tests
    **dict.fromkeys(("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos"), DROP),
    **dict.fromkeys(("test_coatnet", "test_maxvit"), REPLACE),
    **dict.fromkeys(("test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_mambaout"), SPARSE),
    **dict.fromkeys(("test_efficientnet", "test_efficientnet_evos", "test_efficientnet_gn"), SPARSE),
    **dict.fromkeys(("test_efficientnet_ln", "test_nfnet", "test_resnet"), SPARSE),
}
SMALLEST = {  # of a module: ways of hiding, image size, and options
    "beit_base_patch16_224": (DROP, 64, "depth=2"),
    "cait_xxs24_224": (DROP, 64, "depth=3"),
    "coat_tiny": (REPLACE, 64),
    "convit_tiny": (DROP, 64, "depth=3"),
    "cpubone_nano": (REPLACE, 64),
    "cs3darknet_focus_s": (SPARSE, 64),
    "csatv2": (REPLACE, 128),
    "cspnext_tiny": (SPARSE, 64),
    "deit_tiny_patch16_224": (DROP, 64, "depth=3"),
    "densenet121": (SPARSE, 64),
    "dla46x_c": (SPARSE, 64),
    "edgenext_xx_small": (REPLACE, 64),
    "efficientformerv2_s0": (REPLACE, 64),
    "efficientvim_m1": (SPARSE, 128),
    "efficientvit_b0": (SPARSE, 64),
    "efficientvit_m0": (REPLACE, 128),
    "ese_vovnet19b_slim_dw": (SPARSE, 64),
    "fasternet_t0": (SPARSE, 64),
    "gcvit_xxtiny": (REPLACE, 64),
    "ghostnet_050": (SPARSE, 64),
    "hgnetv2_b0": (REPLACE, 64),
    "hiera_tiny_224": (DROP, 64, "stages=[1,1,1,1]"),
    "hrnet_w18_small": (SPARSE, 64),
    "iformer_t": (SPARSE, 64),
    "inception_next_atto": (SPARSE, 64),
    "lcnet_035": (SPARSE, 64),
    "lcnetv2_small": (SPARSE, 64),
    "levit_128s": (REPLACE, 128),
    "mobilevit_xxs": (REPLACE, 64),
    "mvitv2_tiny": (REPLACE, 64),
    "naflexvit_base_patch16_parfac_gap": (DROP, 64, "depth=2"),
    "nest_tiny": (REPLACE, 64),
    "pvt_v2_b0": (SPARSE, 64),
    "qwen3_vit_88m": (DROP, 64, "depth=2"),
    "regnetx_002": (SPARSE, 64),
    "repghostnet_050": (SPARSE, 64),
    "resnest14d": (SPARSE, 64),
    "skresnet18": (SPARSE, 64),
    "starnet_s050": (SPARSE, 64),
    "swiftformer_xs": (SPARSE, 64),
    "swin_tiny_patch4_window7_224": (DROP, 64, "depths=[1,1,1,1]"),
    "swinv2_tiny_window8_256": (DROP, 64, "depths=[1,1,1,1]", "window_size=4"),
    "tiny_vit_5m_224": (REPLACE, 64),
    "tnt_s_legacy_patch16_224": (DROP, 64, "depth=2"),
    "twins_svt_small": (REPLACE, 64),
    "visformer_tiny": (REPLACE, 64),
    "vit_tiny_patch16_dinov3_qkvb": (DROP, 64, "depth=3"),
    "vit_tiny_r_s16_p8_224": (DROP, 64, "depth=4"),
    "xcit_nano_12_p8_224": (REPLACE, 64, "depth=2"),
}


@dataclass(frozen=True)
class Case:
    model: str
    hidden: str
    size: int = 64
    options: tuple[str, ...] = ()


REPLACING = ("test_vit", "test_resnet", "test_convnext", "test_coatnet", "test_maxvit")  # shown in the fast tests
OWN_CASES = [Case(model, hidden) for model, ways in OWN.items() for hidden in ways]
FAST = [case for case in OWN_CASES if case.hidden != "replace" or case.model in REPLACING]
SLOW = [
    *(case for case in OWN_CASES if case not in FAST),
    *(
        Case(model, hidden, size, tuple(options))
        for model, (ways, size, *options) in SMALLEST.items()
        for hidden in (ways if EXHAUSTIVE else ways[:1])
    ),
]


def name_of(case: Case) -> str:
    return f"{case.model}-{case.hidden}"


EACH = pytest.mark.parametrize(  # all tests of a case one after another, which share its encoder
    "case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=name_of, scope="module"
)


@lru_cache(maxsize=2)
def made(case: Case) -> Timm:
    """In float64, with noise in what starts at one value, such as norms, scales and biases."""
    torch.manual_seed(0)
    image = ImageSpec(3, case.size, case.size)
    encoder = Timm(image, model=case.model, hidden=case.hidden, options=case.options).double()
    noise = generator(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1 or parameter.std() == 0:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    return encoder.eval()


def plain(case: Case) -> nn.Module:
    """timm's own model, with the weights of the encoder under timm's names."""
    options = {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in case.options)}
    try:
        model = timm.create_model(case.model, num_classes=0, img_size=case.size, **options)
    except TypeError:  # takes no `img_size`
        model = timm.create_model(case.model, num_classes=0, **options)
    model.double().eval().load_state_dict(made(case).backbone.state_dict())
    return model


def mask_for(encoder: Timm) -> PatchMask:
    masker = Random(encoder.image, cell=encoder.spec.patch, ratio=0.5)
    return masker.sample(2, generator(5), torch.device("cpu"))


def outputs(features: Features) -> list[Tensor]:
    prefix = [] if features.prefix_BKD is None else [features.prefix_BKD]
    return [features.tokens_BND, *features.stages_BDhw, *prefix]


def backward(encoder: Timm, img_BCHW: Tensor, mask: PatchMask) -> dict[str, Tensor | None]:
    """The gradients of all trained parameters, by name."""
    encoder.zero_grad()
    torch.manual_seed(0)
    features = outputs(encoder(img_BCHW, mask, range(len(encoder.spec.stages))))
    weights = [torch.randn(each.shape, generator=generator(3), dtype=each.dtype) for each in features]
    sum((each * weight).sum() for each, weight in zip(features, weights, strict=True)).backward()
    return {name: each.grad for name, each in encoder.named_parameters() if each.requires_grad}


@pytest.mark.slow
@EACH
def test_hidden_pixels(case: Case) -> None:
    """They change no feature, and every trained parameter has a gradient that is more than rounding."""
    encoder = made(case)
    img_BCHW, mask = images(2, encoder.image, dtype=torch.float64), mask_for(encoder)
    hidden_B1HW = mask.at(*img_BCHW.shape[2:])[:, None]
    gradients = backward(encoder, img_BCHW, mask)
    largest = max(float(each.abs().max()) for each in gradients.values() if each is not None)
    idle = [name for name, each in gradients.items() if each is None or not each.abs().max() > ROUNDING * largest]
    assert [name for name in idle if not name.endswith(WITHOUT_EFFECT)] == []
    others_BCHW = images(2, encoder.image, 1, torch.float64)
    others_BCHW[0] = torch.nan
    with torch.no_grad():
        stages = range(len(encoder.spec.stages))
        features = outputs(encoder(img_BCHW, mask, stages))
        again = outputs(encoder(torch.where(hidden_B1HW, others_BCHW, img_BCHW), mask, stages))
    assert features[0].std() > 1e-3
    assert all(torch.equal(*pair) for pair in zip(features, again, strict=True))


@pytest.mark.slow
@EACH
@torch.no_grad()
def test_whole_images(case: Case) -> None:
    """Their features are those of timm's own model, whose weights have the same names."""
    encoder, model = made(case), plain(case)
    img_BCHW = images(2, encoder.image, dtype=torch.float64)
    assert {name.removeprefix(BACKBONE) for name in encoder.state_dict() if name.startswith(BACKBONE)} == set(
        model.state_dict()
    )
    expected = model.forward_intermediates(img_BCHW)[1]
    stages = encoder(img_BCHW, None, range(len(expected))).stages_BDhw
    for ours, theirs in zip(stages, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    if encoder.layout.order != "stage":
        last = encoder.layout.features(model.forward_features(img_BCHW))
        torch.testing.assert_close(encoder(img_BCHW).tokens_BND, last.tokens_BND, rtol=0, atol=1e-6)


@pytest.mark.slow
@EACH
def test_recomputation(case: Case) -> None:
    """In training every parameter has a gradient, which is the same where blocks are computed again."""
    results = []
    for recomputed in (False, True):
        encoder = copy.deepcopy(made(case).train())
        if recomputed:
            recompute_activations(encoder.blocks())
        img_BCHW, mask = images(2, encoder.image, dtype=torch.float64), mask_for(encoder)
        gradients = backward(encoder, img_BCHW, mask)
        assert [name for name, each in gradients.items() if each is None] == []
        results.append((gradients, dict(encoder.named_buffers())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)


@EACH
@torch.no_grad()
def test_depth(case: Case) -> None:
    """Blocks and the layers of layer decay are in order of depth, a block for each layer but the stem."""
    encoder = made(case)
    ids, order, calls = encoder.layer_ids(), {}, []
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    blocks = {id(block): number for number, block in enumerate(encoder.blocks())}

    def note(module, inputs):
        for parameter in module.parameters(recurse=False):
            order.setdefault(names[id(parameter)], None)
        if id(module) in blocks:
            calls.append(blocks[id(module)])

    hooks = [module.register_forward_pre_hook(note) for module in encoder.modules()]
    encoder(images(2, encoder.image, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    assert calls == sorted(calls)
    assert set(calls) == set(blocks.values())
    layers = encoder.layer_parameters()
    assert len(blocks) == len(layers) - 1
    used = [number for number in dict.fromkeys(ids[name] for name in order) if number < encoder.top_layer]
    assert used == sorted(used)


@pytest.mark.slow
def test_replicas_step_without_unused_parameters(warm, tmp_path):
    code, text = warm.run_program(ROOT / "tests" / "support" / "timm_replicas.py", 2, [], tmp_path / "log")
    assert code == 0, text
    assert [line for line in text.splitlines() if line.endswith(" equal")] == ["convnext equal", "hiera equal"]
    assert "unused" not in text, text


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stage"), [("mvitv2_tiny", 2), ("selecsls42", 3), ("test_resnet", 2)])
def test_token_behind_a_stage_is_seen(model, stage):
    encoder = Timm(ImageSpec(3, 128, 128), model=model, hidden="replace", replace_at=stage)
    encoder(images(2, encoder.image), mask_for(encoder)).tokens_BND.square().sum().backward()
    assert encoder.mask_token.grad.any()
    assert encoder.way.colour.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["coat_tiny", "hrnet_w18_small", "efficientvim_m1", "tnt_s_legacy_patch16_224"])
def test_token_behind_a_stage_is_refused_where_stages_pass_on_more_than_a_map(model):
    with pytest.raises(ValueError, match="has no stage for a token, so use 0"):
        Timm(ImageSpec(3, 64, 64), model=model, hidden="replace", replace_at=1)
