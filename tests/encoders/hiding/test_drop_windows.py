"""Dropping in Swin and Swin V2, by the encoders swin and swin_v2 and by the encoder timm.

Shapes: B batch, H W pixels, h w tokens high and wide, N tokens, D width.
"""

from copy import deepcopy
from functools import cache

import pytest
import timm
import torch
from small_models import assemble, generator, images, shaken
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from mim.encoders import Encoder, Swin, SwinV2
from mim.encoders.timm_model import Timm
from mim.engine.modes import recompute_activations
from mim.maskers.random import Random
from mim.structures import ImageSpec, PatchMask

PARTS = {"swin": Swin, "swin_v2": SwinV2}
MODELS = {"swin": "swin_tiny_patch4_window7_224", "swin_v2": "swinv2_tiny_window8_256"}
VERSIONS = pytest.mark.parametrize("version", PARTS)
WAYS = pytest.mark.parametrize("way", ["own", "timm"])
CASES = {  # height, width, window, stages, ratio
    "window 4 and cells of 4": (64, 128, 4, 3, 0.75),
    "window 7 and cells of 4": (112, 224, 7, 3, 0.75),
    "one window a stage": (32, 64, 16, 2, 0.5),
    "one window high": (32, 128, 8, 2, 0.7),
    "few hidden": (64, 64, 4, 3, 0.2),
    "one visible": (64, 64, 8, 3, 0.9),
}
HIGH = 1e30  # taken from the score of a hidden key: exp of the rest is 0


@cache
def encoder_of(version: str, way: str, case: str, hidden: str = "drop") -> Encoder:
    """With weights of noise, in float64."""
    height, width, window, stages, _ = CASES[case]
    return build(version, way, ImageSpec(3, height, width), window, stages, hidden).eval()


def build(version, way, image, window=4, stages=3, hidden="drop", width=8, options=(), **keys) -> Encoder:
    torch.manual_seed(0)
    lists = {"depths": (2,) * stages, "heads": (2,) * stages}
    if way == "own":
        encoder = PARTS[version](image, hidden=hidden, patch=4, width=width, window=window, **lists, **keys)
    else:
        sizes = {"embed_dim": width, "depths": [2] * stages, "num_heads": [2] * stages, "window_size": window}
        sizes |= dict(option.split("=") for option in options)
        pairs = tuple(f"{key}={value}" for key, value in sizes.items())
        encoder = Timm(image, model=MODELS[version], hidden=hidden, options=pairs, **keys)
    return shaken(encoder).double()


def masks(encoder: Encoder, ratio: float, batch: int = 3) -> PatchMask:
    """Of each sample another one."""
    mask = Random(encoder.image, cell=encoder.spec.stride, ratio=ratio).sample(batch, generator(5), torch.device("cpu"))
    assert len({str(hidden.tolist()) for hidden in mask.hidden_BHW}) == batch
    return mask


def noise(encoder: Encoder, seed: int = 0, batch: int = 3) -> Tensor:
    return images(batch, encoder.image, seed, torch.float64)


def dense_stages(encoder: Encoder, img_BCHW: Tensor, mask: PatchMask) -> list[Tensor]:
    """timm's whole model, one sample at a time, with hidden keys cut off in the mask of every block: (B, h, w, D) after
    each stage, and after the last norm."""
    samples = []
    for sample in range(len(img_BCHW)):
        backbone = deepcopy(encoder.backbone)
        for block in blocks_of(backbone):
            vars(block).pop("forward", None)  # timm's
            hide_keys(block, mask.hidden_BHW[sample])
        tokens = backbone.patch_embed(img_BCHW[sample : sample + 1])
        outputs = []
        for stage in backbone.layers:
            tokens = stage(tokens)
            outputs.append(tokens)
        samples.append([*outputs, backbone.norm(tokens)])
    return [torch.cat(outputs) for outputs in zip(*samples, strict=True)]


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    return [block for stage in backbone.layers for block in stage.blocks]


def hide_keys(block: nn.Module, hidden_HW: Tensor) -> None:
    (high, wide), window = block.input_resolution, block.window_size
    cell = high // hidden_HW.shape[0]
    hidden_hw = hidden_HW.repeat_interleave(cell, 0).repeat_interleave(wide // hidden_HW.shape[1], 1).double()
    rolled_hw = hidden_hw.roll([-step for step in block.shift_size], (0, 1))
    padded = nn.functional.pad(rolled_hw, (0, -wide % window[1], 0, -high % window[0]))
    hidden_VT = window_partition(padded[None, :, :, None], window).flatten(1)
    scores_VTT = -HIGH * hidden_VT[:, None, :].expand(-1, hidden_VT.shape[1], -1)
    block.attn_mask = scores_VTT if block.attn_mask is None else scores_VTT + block.attn_mask


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize(
    ("way", "case"), [*(("own", case) for case in CASES), ("timm", "window 7 and cells of 4"), ("timm", "one visible")]
)
@VERSIONS
@torch.no_grad()
def test_drop_windows_equals_the_whole_model_without_hidden_keys(version, way, case):
    encoder = encoder_of(version, way, case)
    img, mask = noise(encoder), masks(encoder, CASES[case][-1])
    *stages, last = dense_stages(encoder, img, mask)
    numbers = tuple(range(len(stages)))
    features = encoder(img, mask, numbers)
    visible_BN = ~mask.at(*encoder.spec.grid).flatten(1)
    expected = last.flatten(1, 2)[visible_BN].view_as(features.tokens_BND)
    assert expected.std() > 0.1
    torch.testing.assert_close(features.tokens_BND, expected, rtol=0, atol=1e-9)
    assert features.kept_BN.tolist() == [visible.nonzero().flatten().tolist() for visible in visible_BN]
    assert torch.equal(features.draw_B, mask.draw_B)
    if way == "own":
        stages[-1] = last  # its last stage is its output
    for number, map_BDhw in enumerate(features.stages_BDhw):
        spec, dense_BDhw = encoder.spec.stages[number], stages[number].permute(0, 3, 1, 2)
        assert map_BDhw.shape[1] == spec.width
        hidden_BDhw = mask.at(encoder.image.height // spec.stride, encoder.image.width // spec.stride)[:, None]
        expected = torch.where(hidden_BDhw, 0.0, dense_BDhw)
        torch.testing.assert_close(map_BDhw, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(
            (64, 96), ("window_size=7",), marks=pytest.mark.slow
        ),  # timm pads 16 x 24, 8 x 12 and 4 x 6 tokens to whole windows
        ((64, 96), ("window_size=7", "qkv_bias=false")),  # and its padding has keys of 0
        ((64, 64), ("window_size=[[8,4],[4,4],[4,4]]",)),
        ((64, 64), ("window_size=4", "always_partition=true")),  # the last stage is one window, and shifted
    ],
)
@VERSIONS
@torch.no_grad()
def test_drop_windows_follows_timms_options_of_windows(version, size, options):
    encoder = build(version, "timm", ImageSpec(3, *size), options=options).eval()
    img, mask = noise(encoder), masks(encoder, 0.5)
    expected = dense_stages(encoder, img, mask)[-1].flatten(1, 2)[~mask.hidden_BHW.flatten(1)]
    torch.testing.assert_close(encoder(img, mask).tokens_BND.flatten(0, 1), expected, rtol=0, atol=1e-9)


@VERSIONS
def test_drop_windows_at_the_published_windows_has_the_gradients_of_the_whole_model(version):
    """7 x 7 windows over tiles of 8, 4, 2 and 1 tokens, at 224 px."""
    encoder = build(version, "timm", ImageSpec(3, 224, 224), 7, 4, options=("depths=[2,1,1,1]",))
    img, mask = noise(encoder, batch=2), masks(encoder, 0.75, batch=2)
    tokens = encoder(img, mask).tokens_BND
    weights = torch.randn(tokens.shape, generator=generator(3), dtype=torch.float64)
    (tokens * weights).sum().backward()
    gradients = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]
    encoder.zero_grad()
    dense = dense_with_gradients(encoder, img, mask)
    torch.testing.assert_close(tokens, dense, rtol=0, atol=1e-9)
    (dense * weights).sum().backward()
    expected = [parameter.grad for parameter in encoder.parameters() if parameter.requires_grad]
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))


def dense_with_gradients(encoder: Encoder, img: Tensor, mask: PatchMask) -> Tensor:
    """The visible tokens of the whole model, with its own parameters."""
    samples = []
    blocks = blocks_of(encoder.backbone)
    masks_before = [block.attn_mask for block in blocks]
    for sample in range(len(img)):
        for block, before in zip(blocks, masks_before, strict=True):
            block.attn_mask = before
            hide_keys(block, mask.hidden_BHW[sample])
        tokens_1hwD = encoder.backbone.forward_features(img[sample : sample + 1])
        samples.append(tokens_1hwD[0].flatten(0, 1)[~mask.hidden_BHW[sample].flatten()])
    return torch.stack(samples)


@WAYS
@VERSIONS
def test_drop_windows_is_blind_to_hidden_pixels_in_features_and_gradients(version, way):
    encoder = encoder_of(version, way, "window 4 and cells of 4")
    img, mask = noise(encoder), masks(encoder, 0.75)
    hidden_B1HW = mask.at(*img.shape[-2:])[:, None]
    results = []
    for value in (img, noise(encoder, 9) * 1e6, torch.tensor(float("nan"), dtype=torch.float64)):
        encoder.zero_grad()
        features = encoder(torch.where(hidden_B1HW, value, img), mask, (0, 1, 2))
        (features.tokens_BND.square().sum() + sum(each.square().sum() for each in features.stages_BDhw)).backward()
        gradients = [parameter.grad for parameter in encoder.parameters() if parameter.requires_grad]
        results.append([features.tokens_BND, *features.stages_BDhw, *gradients])
    encoder.zero_grad()
    assert all(value.isfinite().all() for value in results[0])
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@WAYS
@VERSIONS
@torch.no_grad()
def test_drop_windows_on_whole_images_is_timms_model(version, way):
    encoder = encoder_of(version, way, "window 4 and cells of 4")
    img = noise(encoder)
    keys = {"embed_dim": 8, "depths": (2, 2, 2), "num_heads": (2, 2, 2), "window_size": 4, "num_classes": 0}
    other = timm.create_model(MODELS[version], img_size=(64, 128), **keys).double().eval()
    other.load_state_dict(encoder.backbone.state_dict(), strict=True)
    encoder(img, masks(encoder, 0.75))  # leaves nothing behind
    assert torch.equal(encoder(img).tokens_BND, other.forward_features(img).flatten(1, 2))


@VERSIONS
@torch.no_grad()
def test_drop_windows_has_timms_weights_in_both_encoders(version):
    own, through_timm, replacing = (
        encoder_of(version, *pair)
        for pair in (
            ("own", "window 4 and cells of 4"),
            ("timm", "window 4 and cells of 4"),
            ("own", "window 4 and cells of 4", "replace"),
        )
    )
    assert own.state_dict().keys() == through_timm.state_dict().keys()
    assert replacing.state_dict().keys() - own.state_dict().keys() == {"mask_token"}
    first, second = deepcopy(own), deepcopy(through_timm)
    second.load_state_dict(first.state_dict(), strict=True)
    mask, img = masks(first, 0.75), noise(first)
    assert torch.equal(first(img, mask).tokens_BND, second(img, mask).tokens_BND)
    first.load_state_dict({name: weight for name, weight in replacing.state_dict().items() if name != "mask_token"})
    assert torch.equal(first(img).tokens_BND, replacing(img).tokens_BND)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("version", ["swin", pytest.param("swin_v2", marks=pytest.mark.slow)])
def test_timms_swin_has_no_drop_path_unless_asked(version):
    """timm's own default is 0.1."""
    for keys, rate in (({}, 0.0), ({"drop_path": 0.3}, 0.3), ({"options": ("drop_path_rate=0.2",)}, 0.2)):
        encoder = build(version, "timm", ImageSpec(3, 32, 32), stages=2, **keys)
        rates = [getattr(module, "drop_prob", 0.0) for block in encoder.blocks() for module in block.children()]
        assert max(rates) == pytest.approx(rate)


@WAYS
@VERSIONS
def test_drop_windows_gives_every_parameter_a_gradient_also_where_blocks_are_recomputed(version, way):
    encoder = build(version, way, ImageSpec(3, 64, 128), drop_path=0.1).train()
    img, mask = noise(encoder), masks(encoder, 0.75)
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            recompute_activations(encoder.blocks())
        torch.manual_seed(1)
        encoder.zero_grad()
        encoder(img, mask).tokens_BND.square().sum().backward()
        trained = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        assert [name for name, gradient in trained.items() if gradient is None or not gradient.any()] == []
        gradients.append(trained)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@VERSIONS
@torch.no_grad()
def test_drop_windows_is_the_same_with_the_fused_kernel(version):
    encoder = deepcopy(encoder_of(version, "own", "window 7 and cells of 4"))
    img, mask = noise(encoder), masks(encoder, 0.75)
    expected = encoder(img, mask).tokens_BND
    for module in encoder.modules():
        if hasattr(module, "relative_position_index"):
            vars(module)["fused_attn"] = True
    torch.testing.assert_close(encoder(img, mask).tokens_BND, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@VERSIONS
def test_drop_windows_is_finite_in_half_precision(version, precision):
    encoder = deepcopy(encoder_of(version, "own", "window 7 and cells of 4")).float().train()
    with torch.autocast("cpu", precision):
        tokens = encoder(noise(encoder).float(), masks(encoder, 0.75)).tokens_BND
    tokens.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_drop_windows_makes_a_model_with_masks_and_target_of_its_cells():
    model = assemble("random", "swin", "drop", "transformer", "pixels")
    assert model.encoder.spec.patch == model.encoder.spec.stride == 8
    assert model.encoder.patch_grid == model.encoder.spec.grid


def test_drop_windows_refuses_cells_finer_than_a_token_of_the_last_stage():
    with pytest.raises(ValueError, match=r"MASKER\.cell 4 is not a multiple of .* 8"):
        assemble("random", "swin", "drop", "transformer", "pixels", masker_keys={"cell": 4})


def test_drop_windows_names_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"drop is not possible with SwinTransformer of timm: .*odd number of tokens"):
        build("swin", "timm", ImageSpec(3, 12, 12))  # 3 x 3, 2 x 2 and 1 x 1 tokens


@pytest.mark.slow
@VERSIONS
def test_drop_windows_compiles_without_graph_breaks_or_recompilation(version):
    encoder = deepcopy(encoder_of(version, "own", "window 7 and cells of 4")).float().train()
    plain = deepcopy(encoder)
    # docs/performance.md: PyTorch's own code generator returns NaN for Swin V2 on a CPU
    backend = "inductor" if version == "swin" else "eager"
    for block in (encoder.blocks()[1], encoder.blocks()[-1]):  # shifted windows, and all tokens in one group
        block.forward = torch.compile(block.forward, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for seed in range(2):
            step(encoder, seed)
    with torch._dynamo.config.patch(error_on_recompile=True):
        tokens = step(encoder, 2)
    torch.testing.assert_close(tokens, step(plain, 2), rtol=0, atol=1e-4)


def step(encoder: Encoder, seed: int) -> Tensor:
    mask = Random(encoder.image, cell=encoder.spec.stride, ratio=0.75).sample(2, generator(seed), torch.device("cpu"))
    tokens = encoder(images(2, encoder.image, seed), mask).tokens_BND
    tokens.square().mean().backward()
    return tokens.detach()
