"""Converting to transformers and back, to the bit: its own from_pretrained loads all, and computes the same."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converted import VARIANTS, assert_round_trip, read_checkpoint, sample
from einops import rearrange
from PIL import Image
from processes import TINY_CLASSIFIER, call, last_state
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mim import build_model, load_encoder
from mim.convert import convert
from mim.data.preprocess import Preprocess
from mim.interop import read
from mim.interop.metadata import METADATA_KEY
from mim.interop.names import fold_names

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HEAD, MASKING, CLASSIFIER = ("head.",), ("encoder.mask_token", "head."), ("readouts.",)
CASES = [  # our model, the class there, and what of the model it has no place for
    ("mae", "ViTMAEForPreTraining", ()),
    ("mae-square-many", "ViTMAEForPreTraining", ()),
    ("mae-two-targets", "ViTModel", MASKING),
    ("mae-tall-grey", "ViTModel", MASKING),
    ("vit-replaced", "ViTForMaskedImageModeling", ()),
    ("vit-replaced-wide", "ViTModel", MASKING),
    ("vit-replaced-decoder", "ViTModel", MASKING),
    ("vit-class", "ViTForImageClassification", ()),
    ("vit-class-many", "ViTForImageClassification", ()),
    ("vit-mean-of-normed", "ViTModel", CLASSIFIER),
    ("vit-two-norms", "ViTModel", CLASSIFIER),
    ("vit-probe", "ViTModel", CLASSIFIER),
    ("swin", "SwinForMaskedImageModeling", ()),
    ("swin-large", "SwinModel", MASKING),
    ("swin-mean-square", "SwinForImageClassification", ()),
    ("swin-mean-large", "SwinForImageClassification", ()),
    ("swin-two-norms", "SwinModel", CLASSIFIER),
    ("swin_v2", "Swinv2ForMaskedImageModeling", ()),
    ("swin_v2-small", "Swinv2ForMaskedImageModeling", ()),
    ("swin_v2-mean-square", "Swinv2ForImageClassification", ()),
]
REFUSED = [
    ("vit-mean", "ENCODER.norm is false"),
    ("vit-no-class-normed", "ENCODER.class_token is false"),
    ("swin-one-window", "grid of stage 1, 4x4 tokens"),
    ("swin-wide-many", "grid of stage 1, 4x8 tokens"),
    ("swin_v2-wide-grey", "grid of stage 1, 4x8 tokens"),
    ("beit", "ENCODER.name beit has no counterpart in transformers"),
]


def loaded(expression: str) -> Any:
    """What a call of from_pretrained gives, where it fills every weight and leaves none over."""
    call = expression.removesuffix(")") + ", output_loading_info=True)"
    model, info = eval(call, {"transformers": transformers})
    assert {what: list(names) for what, names in info.items() if names} == {}
    return model.eval()


@torch.no_grad()
def hidden_state(encoder: Any, img_BCHW: Tensor) -> Tensor:
    """All tokens of a bare encoder; of ViTMAE with every patch kept, in its order."""
    keys = {}
    if encoder.config.model_type == "vit_mae":
        encoder.config.mask_ratio = encoder.embeddings.config.mask_ratio = 0.0
        count = encoder.embeddings.patch_embeddings.num_patches
        keys["noise"] = torch.arange(count).expand(len(img_BCHW), -1).float()
    return encoder(img_BCHW, **keys).last_hidden_state


@pytest.mark.parametrize(
    ("model", "kind", "absent"),
    [pytest.param(*case, id=case[0], marks=pytest.mark.slow if case[0] in VARIANTS else []) for case in CASES],
)
def test_convert_there_and_back(tmp_path: Path, model: str, kind: str, absent: tuple[str, ...]) -> None:
    source, folder = sample(model), tmp_path / "theirs"
    lines = convert(source.write(tmp_path / "ours.pt"), folder, "transformers")
    left_out = [name for name in source.state if name.startswith(absent)] if absent else []
    assert f"{folder} (transformers): {len(source.state) - len(left_out)} weights written" in lines
    matches = [line for line in lines if line.endswith(f"left out: {fold_names(left_out)}")]
    assert len(matches) == bool(left_out)

    call, _, automatic = lines[-1].removeprefix("  to load: ").partition(", or ")
    assert call.startswith(f"transformers.{kind}.from_pretrained({str(folder)!r}")
    assert automatic == "AutoModel for its encoder"
    their_model, img_BCHW = loaded(call), source.images()
    assert type(their_model).__name__ == kind
    features = source.features(img_BCHW)
    torch.testing.assert_close(hidden_state(their_model.base_model, img_BCHW), features, rtol=1e-5, atol=1e-5)
    bare = transformers.AutoModel.from_pretrained(folder).eval()
    torch.testing.assert_close(hidden_state(bare, img_BCHW), features, rtol=1e-5, atol=1e-5)
    if kind.endswith("Classification"):
        with torch.no_grad():
            scores = their_model(img_BCHW).logits
        torch.testing.assert_close(scores, source.scores(img_BCHW), rtol=1e-5, atol=1e-5)

    convert(folder, tmp_path / "back.pt", "mim")
    assert_round_trip(tmp_path / "back.pt", source, left_out)

    their_model.save_pretrained(
        tmp_path / "again"
    )  # as the library itself names them, without what mim wrote beside them
    content = json.loads((tmp_path / "again" / "config.json").read_text())
    content = {key: value for key, value in content.items() if key not in ("mim_config", "converted_from")}
    (tmp_path / "again" / "config.json").write_text(json.dumps(content))
    keys = ["ENCODER.window", str(source.cfg.ENCODER.window)] if "window" in source.cfg.ENCODER.values() else []
    encoder_again = load_encoder(tmp_path / "again", keys if content["model_type"] == "swin" else [])
    with torch.no_grad():
        tokens = encoder_again(img_BCHW).tokens_BND
    torch.testing.assert_close(tokens, features[:, encoder_again.spec.num_prefix :], rtol=0, atol=0)


@pytest.mark.parametrize(("model", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_convert_refuses_what_transformers_does_not_compute(tmp_path: Path, model: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        convert(sample(model).write(tmp_path / "ours.pt"), tmp_path / "theirs", "transformers")
    assert not (tmp_path / "theirs").exists()


# -------------------------------------------------------------------- folders that the library wrote

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
SMALL_VIT = {**VIT, "image_size": 32, "patch_size": 8, "num_channels": 1, "layer_norm_eps": 1e-6}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def write_model(folder: Path, kind: str, config: Any, **keys: Any) -> Any:
    """A model of the library's, with weights that all matter, in a folder of its own making."""
    torch.manual_seed(1)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("decoder_pos_embed"):
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder, **keys)
    return model


@pytest.mark.parametrize("shard", ["1GB", "20KB"], ids=["whole", "in-shards"])
def test_load_encoder_of_a_folder_that_the_library_wrote(tmp_path: Path, shard: str) -> None:
    config = transformers.ViTConfig(**SMALL_VIT)
    model = write_model(tmp_path, "ViTForMaskedImageModeling", config, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    encoder = load_encoder(tmp_path)
    img_BCHW = torch.randn(2, 1, 32, 32)
    output = encoder(img_BCHW)
    tokens = torch.cat([output.prefix_BKD, output.tokens_BND], dim=1)
    torch.testing.assert_close(tokens, hidden_state(model.vit, img_BCHW), rtol=1e-5, atol=1e-5)


def test_convert_takes_what_config_json_says_of_a_pretraining(tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(**SMALL_VIT, **DECODER, mask_ratio=0.6, norm_pix_loss=False)
    write_model(tmp_path / "theirs", "ViTMAEForPreTraining", config)
    convert(tmp_path / "theirs", tmp_path / "ours.pt", "mim")
    cfg, state = read_checkpoint(tmp_path / "ours.pt")
    assert (cfg.TASK, cfg.MASKER.ratio, cfg.TARGET.normalize) == ("pretrain", 0.6, "none")
    assert (cfg.ENCODER.heads, cfg.ENCODER.depth, cfg.ENCODER.mlp_ratio, cfg.DATA.channels) == (3, 2, 2.0, 1)
    assert (cfg.HEAD.heads, cfg.HEAD.depth, cfg.HEAD.width, list(cfg.DATA.image_size)) == (2, 1, 16, [32, 32])
    build_model(cfg).load_state_dict(state)


def test_load_encoder_says_what_lies_behind_the_features(tmp_path: Path) -> None:
    """ViTModel's pooler is not part of them, so that it does not count as a weight without a place."""
    write_model(tmp_path, "ViTModel", transformers.ViTConfig(**SMALL_VIT))
    load_encoder(tmp_path)
    lines = convert(tmp_path, tmp_path / "ours.pt", "mim")
    assert "  pooler.dense.{bias, weight}: behind the features, left out" in lines
    assert not any(line.startswith(("  in the file only", "  missing")) for line in lines)


def test_convert_says_where_the_norms_differ(tmp_path: Path) -> None:
    """Of a Swin, which has no key for it; a ViT takes it as ENCODER.norm_eps."""
    keys = {"image_size": 32, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    write_model(tmp_path, "SwinModel", transformers.SwinConfig(**keys, layer_norm_eps=1e-3))
    assert "  layer_norm_eps is 0.001 there and 1e-05 here" in convert(tmp_path, tmp_path / "ours.pt", "mim")


def test_load_encoder_of_a_folder_for_another_size_resizes_its_positions(tmp_path: Path) -> None:
    model = write_model(tmp_path, "ViTModel", transformers.ViTConfig(**SMALL_VIT))
    encoder = load_encoder(tmp_path, ["DATA.image_size", "[48, 64]"])
    table = model.embeddings.position_embeddings.detach()
    expected = resample_abs_pos_embed(table, [6, 8], [4, 4], antialias=False)  # as MAE: it keeps more of a larger table
    torch.testing.assert_close(encoder.backbone.pos_embed.detach(), expected)
    img_BCHW = torch.randn(1, 1, 48, 64)
    with torch.no_grad():  # their own interpolation is the same, bicubic
        theirs = model(img_BCHW, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(encoder(img_BCHW).tokens_BND, theirs[:, 1:], rtol=1e-4, atol=1e-4)


def test_train_starts_from_a_folder_that_the_library_wrote(tmp_path: Path) -> None:
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, num_channels=1, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    model = write_model(tmp_path / "theirs", "SwinForMaskedImageModeling", config)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "TASK: finetune\nDATA: {name: digits, image_size: [64, 64], channels: 1, batch_size: 16, workers: 0}\n"
        "ENCODER: {name: swin, hidden: none, patch: 4, width: 8, depths: [1, 1], heads: [1, 2], window: 8}\n"
    )
    keys = {key: value for key, value in TINY_CLASSIFIER.items() if not key.startswith("ENCODER")}
    keys |= {"INIT.checkpoint": tmp_path / "theirs", "OPTIMIZER.base_lr": 0, "SCHEDULE.min_lr": 0, "TRAIN.epochs": 1}
    code, text = call(tmp_path / "run", keys, recipe)
    assert code == 0, text
    tables = [f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(2)]
    assert f"{tmp_path / 'theirs'}: {len(read(tmp_path / 'theirs', 'IN').state) - 3} encoder weights loaded" in text
    assert f"resized or moved: {tables[0]} 49x1 -> 225x1, {tables[1]} 49x2 -> 225x2" in text
    assert "in the file only, left out: mask_token" in text
    tuned = last_state(tmp_path / "run")["model"]
    assert torch.equal(tuned["encoder.backbone.norm.bias"], model.swin.layernorm.bias)
    second = model.swin.encoder.layers[0].downsample.reduction.weight  # it opens our second stage
    assert torch.equal(tuned["encoder.backbone.layers.1.downsample.reduction.weight"], second)


# -------------------------------------------------------------------- folders that are refused


def folder(path: Path, config: Any, weights: dict[str, Tensor] | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file({"weight": torch.zeros(2)} if weights is None else weights, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("config", "format_name", "message"),
    [
        ({"model_type": "dinov2"}, "", "holds no encoder in a known format"),
        ({"model_type": "dinov2"}, "transformers", r"model_type is 'dinov2'.*swin, swinv2, vit, vit_mae"),
        ({"model_type": "vit", "hidden_act": "relu"}, "", "hidden_act is 'relu': encoders here compute 'gelu' only"),
        ({"model_type": "swin", "use_absolute_embeddings": True}, "", "use_absolute_embeddings is True"),
        ({"model_type": "swin", "qkv_bias": False}, "", "qkv_bias is False"),
        ({"model_type": "vit"}, "", "it lacks 'backbone.patch_embed.proj.weight'"),
        ({"model_type": ["vit"]}, "", "holds no encoder in a known format"),
        ([1, 2], "", "must be a mapping, not list"),
        ("{", "", "its JSON cannot be read"),
        ("", "", "its JSON cannot be read"),
    ],
)
def test_convert_refuses_a_folder_it_cannot_read(tmp_path: Path, config: Any, format_name: str, message: str) -> None:
    source = folder(tmp_path / "theirs", config)
    with pytest.raises(ValueError, match=message) as caught:
        convert(source, tmp_path / "ours.pt", "mim", format_name)
    assert str(source) in str(caught.value)
    assert not (tmp_path / "ours.pt").exists()


def test_load_encoder_reads_no_shard_outside_its_folder(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "outside.safetensors")
    source = folder(tmp_path / "theirs", {"model_type": "vit"})
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match=r"theirs/outside\.safetensors does not exist"):
        load_encoder(source)


def test_convert_keeps_the_precision_of_weights(tmp_path: Path) -> None:
    source = sample("vit-class").write(tmp_path / "ours.pt", torch.bfloat16)
    convert(source, tmp_path / "theirs", "transformers")
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert transformers.AutoModel.from_pretrained(tmp_path / "theirs").dtype == torch.bfloat16


def test_convert_over_a_folder_in_shards_is_read_as_what_was_written_last(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SMALL_VIT)
    write_model(tmp_path / "theirs", "ViTForImageClassification", config, max_shard_size="20KB")
    source = sample("vit-class")
    convert(source.write(tmp_path / "ours.pt"), tmp_path / "theirs", "transformers")
    img_BCHW = source.images()
    model = transformers.AutoModel.from_pretrained(tmp_path / "theirs").eval()
    for tokens in (hidden_state(model, img_BCHW)[:, 1:], load_encoder(tmp_path / "theirs")(img_BCHW).tokens_BND):
        torch.testing.assert_close(tokens, source.features(img_BCHW)[:, 1:], rtol=1e-5, atol=1e-5)


def test_convert_says_how_images_are_prepared_and_reads_it_back(tmp_path: Path) -> None:
    convert(sample("mae").write(tmp_path / "a.pt"), tmp_path / "theirs", "transformers")
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    actual = processor(Image.fromarray(pixels_HWC), return_tensors="pt").pixel_values
    expected = Preprocess((0.4, 0.4, 0.4), (0.3, 0.3, 0.3))(rearrange(torch.from_numpy(pixels_HWC), "h w c -> 1 c h w"))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    processor.image_mean, processor.image_std = [0.1, 0.2, 0.3], [0.5, 0.5, 0.25]
    processor.save_pretrained(tmp_path / "theirs")
    config = tmp_path / "theirs" / "config.json"
    config.write_text(
        json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != METADATA_KEY})
    )
    data = read(tmp_path / "theirs", "IN").sections["DATA"]
    assert (data["mean"], data["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.25])
    (tmp_path / "theirs" / "preprocessor_config.json").write_text("[]")
    assert read(tmp_path / "theirs", "IN").sections["DATA"]["mean"] == [0.485, 0.456, 0.406]
