"""Swin V2: its features against timm's, its first weights and steps, its windows, and what its weights tell.

Shapes: B batch, N tokens, D width.
"""

import math

import pytest
import timm
import torch
from processes import FINETUNE, ROOT, TINY, TINY_CLASSIFIER, call, last_checkpoint, last_state, losses
from small_models import SWIN, assemble, generator, images, opened, sampled, shaken
from torch import Tensor, nn

from mim.encoders import Swin, SwinV2
from mim.heads.pixel_shuffle import PixelShuffle
from mim.losses import L1
from mim.maskers.random import Random
from mim.registry import keys_of
from mim.structures import ImageSpec, PatchMask

SQUARE, WIDE = ImageSpec(3, 32, 32), ImageSpec(3, 32, 64)
SIZES = [(1, 32, 64), (3, 64, 32), (4, 32, 32), (12, 96, 160)]
STAGES = pytest.mark.parametrize("part", [Swin, SwinV2])


def swin_v2(image: ImageSpec = WIDE, **keys) -> SwinV2:
    torch.manual_seed(0)
    return SwinV2(image, **{**SWIN, **keys})


def timm_swin_v2(image: ImageSpec, **keys) -> nn.Module:
    return timm.create_model(
        "swinv2_base_window12_192",
        **{"img_size": (image.height, image.width), "in_chans": image.channels, "patch_size": 4, "num_classes": 0},
        **{"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, **keys},
    ).eval()


def masked(image: ImageSpec, batch: int = 2) -> PatchMask:
    return Random(image, cell=8, ratio=0.5).sample(batch, generator(2), torch.device("cpu"))


# ---------------------------------------------------------------- features


@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@pytest.mark.parametrize("windows", [(), (8, 2)])
@torch.no_grad()
def test_swin_v2_without_a_mask_equals_timms_own(channels, height, width, windows):
    image = ImageSpec(channels, height, width)
    encoder = shaken(swin_v2(image, pretrained_windows=windows).double()).eval()
    other = timm_swin_v2(image, pretrained_window_sizes=windows or (0, 0)).double()
    other.load_state_dict(encoder.backbone.state_dict(), strict=True)
    img = images(2, image, dtype=torch.float64)
    expected = other.forward_features(img)
    assert expected.shape[1:3] == encoder.spec.grid
    torch.testing.assert_close(encoder(img).tokens_BND, expected.flatten(1, 2), rtol=0, atol=1e-10)


def test_swin_v2_backbone_has_timms_parameter_names_and_shapes():
    ours, theirs = swin_v2().backbone.state_dict(), timm_swin_v2(WIDE).state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {n: weight.shape for n, weight in theirs.items()}


@torch.no_grad()
def test_swin_v2_puts_its_token_in_every_hidden_patch_behind_the_norm_of_the_embedding():
    encoder, img = shaken(swin_v2(hidden="replace")).eval(), images(2)
    mask = masked(WIDE)  # cells of 8 px hide 2 x 2 patches of 4 px
    tokens = encoder.backbone.patch_embed.norm(encoder.backbone.patch_embed.proj(img).permute(0, 2, 3, 1))
    for sample, row, column in mask.hidden_BHW.nonzero().tolist():
        tokens[sample, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = encoder.mask_token[0, 0]
    expected = encoder.backbone.norm(encoder.backbone.layers(tokens))
    torch.testing.assert_close(encoder(img, mask).tokens_BND, expected.flatten(1, 2), rtol=0, atol=1e-5)
    assert not torch.allclose(encoder(img, mask).tokens_BND, encoder(img).tokens_BND, atol=1e-2)


@pytest.mark.parametrize("image", [SQUARE, WIDE])
@torch.no_grad()
def test_swin_v2_never_reads_hidden_pixels(image):
    encoder, img, mask = shaken(swin_v2(image)).eval(), images(2, image), masked(image)
    expected = encoder(img, mask).tokens_BND
    hidden_B1HW = mask.at(image.height, image.width)[:, None]
    for value in (1e6 * images(2, image, seed=9), torch.tensor(math.nan)):
        assert torch.equal(encoder(torch.where(hidden_B1HW, value, img), mask).tokens_BND, expected)
    visible = torch.where(hidden_B1HW, img, img + images(2, image, seed=9))
    assert not torch.allclose(encoder(visible, mask).tokens_BND, expected, atol=1e-2)


# ---------------------------------------------------------------- first weights and steps


def test_swin_v2_starts_as_published():
    # models/swin_transformer_v2.py, _init_weights and _init_respostnorm; models/simmim.py
    encoder = swin_v2(ImageSpec(3, 64, 64), width=64, heads=(2, 4))
    for name, parameter in encoder.backbone.named_parameters():
        if name.startswith("patch_embed.proj."):
            assert 0 < parameter.abs().max() <= 1 / math.sqrt(3 * 4 * 4), name  # as PyTorch makes it
        elif (".blocks." in name and ".norm" in name) or name.endswith((".bias", "q_bias", "v_bias")):
            assert not parameter.any(), name
        elif name.endswith("logit_scale"):
            assert parameter.detach() == pytest.approx(math.log(10)), name
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert encoder.mask_token.std().item() == pytest.approx(0.02, rel=0.3)


def simmim_v2():
    torch.manual_seed(0)
    model = assemble(Random, SwinV2, "replace", PixelShuffle, loss=L1).train()
    for block in model.encoder.blocks():  # `small` opens them
        for norm in (block.norm1, block.norm2):
            nn.init.zeros_(norm.weight)
    return model


def without_gradient(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}


def test_swin_v2_trains_what_is_inside_its_branches_from_the_second_step_on():
    """And its embedding: until attention has an effect, no hidden place sees a visible one."""
    model, img = simmim_v2(), images(4)
    mask = sampled(model, img)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(img, mask).loss.backward()
    names = [name for name, _ in model.named_parameters()]
    inside = {name for name in names if ".attn." in name or ".mlp." in name}
    assert len(inside) == 4 * (9 + 4)
    assert without_gradient(model) == inside | {name for name in names if ".patch_embed." in name}
    optimizer.step()
    optimizer.zero_grad()
    model(img, mask).loss.backward()
    assert without_gradient(model) == set()


@torch.no_grad()
def test_swin_v2_starts_as_if_it_had_no_blocks():
    encoder, img = swin_v2().eval(), images(2)
    tokens = encoder.backbone.patch_embed(img)
    for stage in encoder.backbone.layers:
        tokens = stage.downsample(tokens)
    expected = encoder.backbone.norm(tokens).flatten(1, 2)
    assert torch.equal(encoder(img).tokens_BND, expected)
    assert not torch.allclose(opened(encoder)(img).tokens_BND, expected, atol=1e-2)


# ---------------------------------------------------------------- windows


def biases(encoder: SwinV2) -> list[Tensor]:
    """Of each block, the bias for each distance, (heads, down, right)."""
    tables = []
    for block in encoder.blocks():
        attention = block.attn
        tables.append(attention.cpb_mlp(attention.relative_coords_table)[0].permute(2, 0, 1))
    return tables


@torch.no_grad()
def test_swin_v2_at_a_larger_window_keeps_the_biases_of_the_windows_it_was_trained_at():
    trained = shaken(swin_v2(SQUARE))  # windows of 4 x 4 in both stages
    larger, naive = (
        swin_v2(ImageSpec(3, 64, 64), window=8, pretrained_windows=windows) for windows in ((4, 4), (0, 0))
    )
    for encoder in (larger, naive):
        encoder.load_state_dict(trained.state_dict(), strict=True)
    for old, new, stretched in zip(*map(biases, (trained, larger, naive)), strict=True):
        assert new.shape[1:] == (15, 15)
        torch.testing.assert_close(new[:, 4:-4, 4:-4], old, rtol=0, atol=1e-6)
        assert not torch.allclose(stretched[:, 4:-4, 4:-4], old, atol=1e-2)


@torch.no_grad()
def test_swin_v2_pretrained_windows_equal_to_its_own_change_nothing():
    plain, stated, zero = (shaken(swin_v2(pretrained_windows=windows)) for windows in ((), (4, 4), (0, 0)))
    assert torch.equal(stated(images()).tokens_BND, plain(images()).tokens_BND)
    assert torch.equal(zero(images()).tokens_BND, plain(images()).tokens_BND)


@pytest.mark.parametrize("windows", [(4,), (4, 4, 4), (4, 1), (4, -2)])
def test_swin_v2_refuses_pretrained_windows_that_do_not_fit_its_stages(windows):
    with pytest.raises(ValueError, match=r"ENCODER\.pretrained_windows is .*one number for each of 2 stages"):
        swin_v2(pretrained_windows=windows)


@pytest.mark.parametrize("size", [(4, 32), (32, 4), (4, 4)])
@torch.no_grad()
def test_swin_v2_has_finite_features_where_a_window_is_one_token_high_or_wide(size):
    encoder = shaken(swin_v2(ImageSpec(3, *size), depths=(2,), heads=(2,)))
    tokens = encoder(images(2, encoder.image)).tokens_BND
    assert tokens.isfinite().all()
    assert tokens.std() > 0.1


@pytest.mark.parametrize(
    ("size", "window", "message"),
    [((32, 48), 4, "the width of stage 1, 6 tokens"), ((32, 64), 3, "the height of stage 0, 8 tokens")],
)
def test_swin_v2_names_stage_and_axis_that_its_window_does_not_tile(size, window, message):
    with pytest.raises(ValueError, match=rf"ENCODER\.window {window} does not divide {message}"):
        swin_v2(ImageSpec(3, *size), window=window)


# ---------------------------------------------------------------- what weights tell


@STAGES
@pytest.mark.parametrize("hidden", ["replace", "none"])
@pytest.mark.parametrize(
    ("image", "keys"),
    [
        (WIDE, {}),
        (ImageSpec(12, 96, 160), {"width": 12, "heads": (3, 2), "mlp_ratio": 2.5}),
        (ImageSpec(1, 64, 64), {"patch": 2, "depths": (1, 3, 2), "heads": (1, 4, 2), "window": 8}),
        (SQUARE, {"window": 8}),  # the second stage cuts it to 4
        (SQUARE, {"depths": (3,), "heads": (4,)}),
    ],
)
@torch.no_grad()
def test_windowed_encoder_is_built_again_from_what_its_weights_tell(part, hidden, image, keys):
    encoder = shaken(part(image, hidden=hidden, **{**SWIN, **keys})).eval()
    inferred = part.infer_config(encoder.state_dict())
    expected = {key: value for key, value in {"mlp_ratio": 4.0, **SWIN, **keys}.items() if key in inferred.keys}
    assert inferred.keys == expected
    assert inferred.unspecified == (("window", "pretrained_windows") if part is SwinV2 else ())
    assert {*inferred.keys, *inferred.unspecified} == {*keys_of(part)} - {"hidden", "drop_path"}
    assert (inferred.channels, inferred.image_size) == (image.channels, None)
    rebuilt = part(image, hidden=hidden, **{"window": SWIN["window"], **keys, **inferred.keys}).eval()
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(rebuilt(images(2, image)).tokens_BND, encoder(images(2, image)).tokens_BND)


def test_swin_tells_no_window_that_is_not_square():
    inferred = Swin.infer_config(Swin(WIDE, **{**SWIN, "window": 16}).state_dict())  # 8 x 16 tokens: one window
    assert "window" not in inferred.keys
    assert inferred.unspecified == ("window",)


# ---------------------------------------------------------------- tools/train.py

OURS = {
    **{"ENCODER.name": "swin_v2", "ENCODER.patch": 4, "ENCODER.width": 8, "ENCODER.window": 4},
    **{"ENCODER.depths": "[2, 2]", "ENCODER.heads": "[2, 2]"},
}


@pytest.mark.slow
def test_train_pretrains_swin_v2_on_local_windows_and_fine_tunes_it_at_another_window(tmp_path):
    base = {key: value for key, value in TINY.items() if not key.startswith(("HEAD.", "ENCODER."))}
    recipe = ROOT / "configs" / "quickstart" / "simmim_digits.yaml"
    target = {"TARGET.normalize": "window", "TARGET.window": 5}
    code, output = call(tmp_path / "pretrain", base | OURS | target, recipe)
    assert code == 0, output
    curve = losses(tmp_path / "pretrain")
    assert sum(curve[-5:]) < sum(curve[:5])

    base = {key: value for key, value in TINY_CLASSIFIER.items() if not key.startswith("ENCODER.")}
    other = {"ENCODER.window": 8, "ENCODER.pretrained_windows": "[4, 4]", "READOUT.init_std": 0.02}
    checkpoint = {"INIT.checkpoint": last_checkpoint(tmp_path / "pretrain"), "READOUT.norm": False}
    code, output = call(tmp_path / "finetune", base | OURS | other | checkpoint, FINETUNE)
    assert code == 0, output
    log = (tmp_path / "finetune" / "log.txt").read_text()
    assert "encoder weights loaded" in log
    assert "resized" not in log  # its weights are of no window
    name = "encoder.backbone.layers.1.blocks.0.attn.cpb_mlp.2.weight"
    states = [last_state(tmp_path / run)["model"] for run in ("pretrain", "finetune")]
    start, tuned = (state[name] for state in states)
    assert 0 < (tuned - start).norm() < start.norm()
