"""Hugging Face folders: an encoder that is written has equal features here, in timm and in transformers; so has timm's.

Shapes: B batch, C channels, H W pixels, N tokens, D width.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from converted import MODELS, sample, tokens_of
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from mim import Encoder, Features, load_encoder
from mim.build.encoders import read_encoder
from mim.interop.formats import ModelWeights
from mim.interop.huggingface import Preparation, write_encoder


class Embedding(Encoder, name="embedding_of_hub_test"):
    """Patches, each by itself: an encoder that timm has not."""

    def __init__(self, image, *, hidden: str = "none", width: int = 8):
        super().__init__(image, hidden, width=width, patch=8)
        self.embed = nn.Conv2d(image.channels, width, 8, 8)

    def forward(self, img_BCHW, mask=None):
        return Features(self.embed(img_BCHW).flatten(2).transpose(1, 2), self.spec.grid)


def written(run: Path, folder: Path) -> tuple[Encoder, str]:
    """The encoder of a checkpoint, and why timm cannot load the folder that was written of it."""
    encoder, cfg = read_encoder(run, ())
    state = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    sections = yaml.safe_load(cfg.to_yaml())
    weights = ModelWeights(state, sections, "run.pt", format="mim")
    return encoder, write_encoder(weights, folder, Preparation(0.875, "bilinear"))


def all_tokens(features: Tensor, like_BND: Tensor) -> Tensor:
    """Features of timm or transformers as tokens."""
    if features.ndim == 3:
        return features
    last = features.shape[-1] == like_BND.shape[-1]
    return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "mae-wide-many", "vit-no-class-normed", "swin-flat", "swin_v2-mean", "beit"])
def test_folder_has_equal_features_here_in_timm_and_in_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder, obstacle = written(sample(name).write(tmp_path / "run.pt"), tmp_path / "folder")
    assert obstacle == ""
    img_BCHW = sample(name).images()
    ours_BND = tokens_of(encoder, img_BCHW)
    assert torch.equal(tokens_of(load_encoder(tmp_path / "folder"), img_BCHW), ours_BND)
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        torch.testing.assert_close(all_tokens(model.forward_features(img_BCHW), ours_BND), ours_BND)
        torch.testing.assert_close(all_tokens(theirs(img_BCHW).last_hidden_state, ours_BND), ours_BND)
    assert (model.pretrained_cfg["crop_pct"], model.pretrained_cfg["interpolation"]) == (0.875, "bilinear")
    assert list(model.pretrained_cfg["mean"]) == list(sample(name).cfg.DATA.mean)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"name": "embedding_of_hub_test"}, "ENCODER.name embedding_of_hub_test has no counterpart in timm"),
        ({**MODELS["mae"]["ENCODER"], "norm_eps": 1e-5}, "ENCODER.norm_eps 1e-05 cannot stand in its JSON"),
    ],
)
def test_folder_of_an_encoder_that_timm_has_not_loads_here_alone(encoder: dict, reason: str, tmp_path, monkeypatch):
    sections = {**MODELS["mae"], "TASK": "finetune", "ENCODER": {**encoder, "hidden": "none"}}
    for name in ("MASKER", "HEAD", "TARGET", "LOSS"):
        sections.pop(name)
    monkeypatch.setitem(MODELS, "of-hub-test", sections)
    sample.cache_clear()
    ours, obstacle = written(sample("of-hub-test").write(tmp_path / "run.pt"), tmp_path / "folder")
    sample.cache_clear()
    assert obstacle == reason
    img_BCHW = torch.randn(2, 3, 32, 32)
    assert torch.equal(tokens_of(load_encoder(tmp_path / "folder"), img_BCHW), tokens_of(ours, img_BCHW))


SMALL: dict[str, Any] = {"img_size": 64, "num_classes": 3}
TIMM = [
    ("vit_tiny_patch16_224", {"depth": 1, "num_heads": 2, "in_chans": 1, **SMALL}, "vit"),
    ("vit_tiny_patch16_224", {"depth": 1, "init_values": 0.1, **SMALL}, "timm vit_tiny_patch16_224"),
    ("beit_base_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2, **SMALL}, "beit"),
    (
        "swin_tiny_patch4_window7_224",
        {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "window_size": 4, **SMALL},
        "swin",
    ),
    (
        "swinv2_tiny_window8_256",
        {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "pretrained_window_sizes": [6, 6], **SMALL},
        "swin_v2",
    ),
    ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 12]}, "timm convnext_atto"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "title"), TIMM)
def test_folder_of_timm_says_what_weights_alone_do_not(
    name: str, arguments: dict, title: str, tmp_path, caplog
) -> None:
    model = timm.create_model(name, **arguments).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, 0.1, 0.1)
    save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    encoder = load_encoder(tmp_path)
    assert encoder.title == title
    assert not [record for record in caplog.records if record.name == "mim"]  # nothing was guessed
    img_BCHW = torch.randn(2, encoder.image.channels, encoder.image.height, encoder.image.width)
    ours_BND = tokens_of(encoder, img_BCHW)
    with torch.no_grad():
        torch.testing.assert_close(all_tokens(model.forward_features(img_BCHW), ours_BND), ours_BND)


def test_folder_of_timm_with_a_damaged_config_is_read_by_its_weights(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    save_for_hf(model, tmp_path, safe_serialization=True)
    for content in ({"architecture": "none_such"}, {"architecture": 3}, {"architecture": "vit_tiny_patch16_224"}):
        (tmp_path / "config.json").write_text(json.dumps({**content, "pretrained_cfg": 3}))
        assert load_encoder(tmp_path).title == "vit"
