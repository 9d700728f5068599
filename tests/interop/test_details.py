"""ViTs whose blocks are not MAE's (biases, eps, class position, width of heads, norms of patches) in other formats.

Each goes where the format can hold it, and is computed there as here; elsewhere it is refused with the key.
"""

import functools
from pathlib import Path
from typing import Any

import parity
import pytest
import timm
import torch
from converted import DECODER, SQUARE, VIT, Sample, build_sample, pretrained, read_checkpoint, tokens_of, tuned
from small_models import generator, images

from mim import load_encoder, load_model
from mim.convert import convert
from mim.structures import ImageSpec, PatchMask

EPS = {"norm_eps": 1e-3}  # so large that features show it
BLOCKS = {"qkv_bias": False, **EPS}
NO_POSITION = {"class_position": False, "positions": "learned"}
WIDE = {"head_width": 6, "heads": 2}
NORMED = {"patch_norm": True}
POST_NORM = {"norm_first": False}
OF_OURS = {"positions": "learned", "positions_of": "hidden", "norm": False}


def pretraining(encoder: dict[str, Any], head: dict[str, Any] | None = None) -> Sample:
    return build_sample(pretrained({**VIT, **encoder}, "drop", {**DECODER, **(head or {})}, SQUARE))


def assert_loads_as(path: Path, source: Sample) -> None:
    """A file gives an encoder with the features of the source."""
    img_BCHW = source.images()
    with torch.no_grad():
        tokens = tokens_of(load_encoder(path), img_BCHW)
    torch.testing.assert_close(tokens, source.features(img_BCHW), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keys", [{**BLOCKS, **WIDE, **NORMED, **NO_POSITION}, {**BLOCKS, "class_token": False}])
def test_checkpoint_of_ours_gives_the_encoder_of_its_keys(tmp_path: Path, keys: dict[str, Any]) -> None:
    source = pretraining(keys)
    assert_loads_as(source.write(tmp_path / "ours.pt"), source)


@pytest.mark.parametrize("keys", [{**BLOCKS, **NO_POSITION}, {"qkv_bias": False, "class_token": False}])
def test_timm_computes_the_same_and_comes_back(tmp_path: Path, keys: dict[str, Any]) -> None:
    source, file = pretraining(keys), tmp_path / "timm.safetensors"
    call = convert(source.write(tmp_path / "ours.pt"), file, "timm")[-1].removeprefix("  to load: ")
    model = eval(call, {"timm": timm, "torch": torch, "functools": functools}).eval()
    with torch.no_grad():
        tokens = model.forward_features(source.images())
    torch.testing.assert_close(tokens, source.features(source.images()), rtol=0, atol=1e-5)
    assert_loads_as(file, source)
    convert(file, tmp_path / "back.pt", "mim")
    cfg, state = read_checkpoint(tmp_path / "back.pt")
    assert {key: getattr(cfg.ENCODER, key) for key in keys} == keys
    assert all(torch.equal(weight, source.state[name]) for name, weight in state.items())


def test_bare_weights_show_their_biases_and_ask_for_heads_of_their_own_width(tmp_path: Path) -> None:
    source, file = pretraining({"qkv_bias": False, **WIDE}), tmp_path / "bare.pth"
    torch.save(source.model.encoder.backbone.state_dict(), file)
    with pytest.raises(ValueError, match=r"does not hold ENCODER\.heads and ENCODER\.head_width: give each"):
        load_encoder(file)
    encoder = load_encoder(file, {f"ENCODER.{key}": value for key, value in WIDE.items()})
    with torch.no_grad():
        tokens = tokens_of(encoder, source.images())
    torch.testing.assert_close(tokens, source.features(source.images()), rtol=0, atol=1e-5)


def test_timm_computes_a_beit_of_another_eps(tmp_path: Path) -> None:
    beit = {"name": "beit", "patch": 8, "width": 16, "depth": 2, "heads": 2, "bias": "block", **EPS}
    source = build_sample(tuned(beit, "class", False, SQUARE))
    lines = convert(source.write(tmp_path / "ours.pt"), tmp_path / "timm.pth", "timm")
    model = eval(lines[-1].removeprefix("  to load: "), {"timm": timm, "torch": torch, "functools": functools}).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(source.images()), source.scores(source.images()), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("keys", [BLOCKS, {**BLOCKS, **NO_POSITION}], ids=["blocks", "no-position"])
def test_transformers_computes_the_same_pretraining_and_comes_back(tmp_path: Path, keys: dict[str, Any]) -> None:
    source, folder, img_BCHW = pretraining(keys, BLOCKS), tmp_path / "theirs", images(2, ImageSpec(3, 32, 32))
    theirs = parity.exported(source.write(tmp_path / "ours.pt"), folder, "ViTMAEForPreTraining")
    noise_BN = torch.rand(2, 16, generator=generator(3))
    hidden_BN = torch.ones(2, 16, dtype=torch.bool).scatter(1, noise_BN.argsort(dim=1)[:, :4], False)
    mask = PatchMask(hidden_BN.view(2, 4, 4), visible=4)
    loss = source.model(img_BCHW, mask).loss
    torch.testing.assert_close(theirs(img_BCHW, noise=noise_BN).loss, loss, rtol=0, atol=1e-5)
    again, *_ = load_model(folder)
    torch.testing.assert_close(again(img_BCHW, mask).loss, loss, rtol=0, atol=1e-6)
    assert (again.encoder.backbone.norm.eps, again.head.norm.eps) == (1e-3, 1e-3)


@torch.no_grad()
def test_transformers_brings_its_eps_and_its_lack_of_biases(tmp_path: Path) -> None:
    keys = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    keys |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-3, "qkv_bias": False}
    theirs, img_BCHW = parity.theirs_of("ViTModel", keys), images(2, ImageSpec(3, 32, 32))
    theirs.save_pretrained(tmp_path)
    tokens = tokens_of(load_encoder(tmp_path), img_BCHW)
    torch.testing.assert_close(tokens, theirs(img_BCHW).last_hidden_state, rtol=0, atol=1e-5)


def test_mae_gets_zeros_for_a_class_token_without_position(tmp_path: Path) -> None:
    source = pretraining(NO_POSITION)
    convert(source.write(tmp_path / "ours.pt"), tmp_path / "mae.pth", "mae")
    table = torch.load(tmp_path / "mae.pth")["model"]["pos_embed"]
    assert not table[:, 0].any()
    assert torch.equal(table[:, 1:], source.state["encoder.backbone.pos_embed"])
    assert_loads_as(tmp_path / "mae.pth", source)


@pytest.mark.parametrize(
    ("to", "keys", "message"),
    [
        ("mae", {"qkv_bias": False}, "ENCODER.qkv_bias is false: encoders of facebookresearch/mae have true only"),
        ("mae", EPS, "ENCODER.norm_eps is 0.001: encoders of facebookresearch/mae"),
        ("mae", WIDE, "ENCODER.head_width is 6: encoders of facebookresearch/mae"),
        ("mae", NORMED, "ENCODER.patch_norm is true: encoders of facebookresearch/mae"),
        ("mae", POST_NORM, "ENCODER.norm_first is false: encoders of facebookresearch/mae have true only"),
        ("timm", POST_NORM, "ENCODER.norm_first is false: encoders of timm"),
        ("transformers", POST_NORM, "ENCODER.norm_first is false: encoders of transformers"),
        ("timm", WIDE, "ENCODER.head_width is 6: encoders of timm"),
        ("timm", NORMED, "ENCODER.patch_norm is true: encoders of timm"),
        ("transformers", WIDE, "ENCODER.head_width is 6: encoders of transformers"),
        ("transformers", NORMED, "ENCODER.patch_norm is true: encoders of transformers"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, to: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(pretraining(keys).write(tmp_path / "ours.pt"), tmp_path / "theirs", to)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("to", ["mae", "transformers"])
@pytest.mark.parametrize(
    "head",
    [OF_OURS, EPS, {"embed": False, "width": 24, "heads": 3}],
    ids=["ends", "eps", "bare"],
)
def test_decoder_that_a_format_cannot_hold_stays_here_and_is_named(tmp_path: Path, to: str, head: dict) -> None:
    source = pretraining({}, head)
    lines = convert(source.write(tmp_path / "ours.pt"), tmp_path / "theirs", to)
    (left_out,) = [line for line in lines if "unknown to that format, left out: " in line]
    assert "mask_token" in left_out
    assert_loads_as(tmp_path / "theirs", source)
