"""Weights of timm's models: into ENCODER.name timm and back, resized by timm itself, and as the start of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import mim
from mim import interop
from mim.build import build_data, evaluation_data
from mim.encoders import Timm
from mim.encoders.hiding.backbone import BackboneSettings
from mim.evaluation.reading import Reader
from mim.interop.formats import ModelWeights, UnknownFormat, read
from mim.interop.initialise import initialise_encoder
from mim.structures import ImageSpec

SMALL = {  # model of timm: image side, options
    "vit_tiny_patch16_224": (32, ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")),
    "vit_small_patch16_dinov3": (32, ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")),
    "eva02_tiny_patch14_224": (32, ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")),
    "beit_base_patch16_224": (32, ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")),
    "deit_tiny_distilled_patch16_224": (32, ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")),
    "swin_tiny_patch4_window7_224": (32, ("embed_dim=8", "depths=[2, 2]", "num_heads=[2, 2]", "window_size=4")),
    "hiera_tiny_224": (64, ("embed_dim=8", "num_heads=1", "stages=[1, 1, 1, 1]", "mlp_ratio=2.0")),
    "hiera_small_abswin_256": (64, ("embed_dim=8", "num_heads=1", "stages=[1, 1, 1, 1]", "mlp_ratio=2.0")),
    "test_convnext": (32, ()),
    "convnextv2_atto": (32, ("depths=[1, 1, 1, 1]", "dims=[4, 8, 8, 8]")),  # linear layers are 1 x 1 convolutions
    "test_resnet": (32, ()),
    "test_efficientnet": (32, ()),
    "test_nfnet": (32, ()),
}


def of_timm(name: str, side: int, classes: int = 5) -> torch.nn.Module:
    """A model of timm whose weights and statistics are all random."""
    torch.manual_seed(1)
    options = BackboneSettings(name, SMALL[name][1]).taken(ImageSpec(3, side, side))
    model = timm.create_model(name, **{**options, "num_classes": classes}).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.rand_like(tensor))
    return model


def encoder(name: str, side: int) -> Timm:
    torch.manual_seed(2)
    return Timm(ImageSpec(3, side, side), model=name, options=SMALL[name][1], hidden="none").eval()


def test_a_config_of_hiera_loads_beside_a_file_of_timm(tmp_path):
    """With one position for each place of a window, whose table no ViT has."""
    name = "hiera_small_abswin_256"
    path = saved(of_timm(name, 64), tmp_path / "hiera.pth")
    keys = {"ENCODER.model": name, "ENCODER.options": list(SMALL[name][1]), "DATA.image_size": [64, 64]}
    cfg = mim.load_config("backbones/any", keys | {"INIT.checkpoint": str(path)})
    assert cfg.ENCODER.model == name


def saved(model: torch.nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_file_of_timm_gives_exactly_its_features_and_goes_back_to_the_bit(name, tmp_path):
    side = SMALL[name][0]
    theirs, ours = of_timm(name, side), encoder(name, side)
    report = initialise_encoder(ours, saved(theirs, tmp_path / "theirs.pth"), is_frozen=lambda weight: True)
    assert (report.missing, report.unexpected, report.reshaped, report.resized) == ([], [], [], [])
    img = torch.randn(2, 3, side, side)
    assert torch.equal(ours.backbone.forward_features(img), theirs.forward_features(img))
    before = theirs.state_dict()
    for key, weight in ours.backbone.state_dict().items():
        assert torch.equal(weight, before[key]), key


@torch.no_grad()
def test_positions_are_resized_as_timm_resizes_them(tmp_path):
    name = "vit_tiny_patch16_224"
    theirs = of_timm(name, 32)
    ours = encoder(name, 64)
    report = initialise_encoder(ours, saved(theirs, tmp_path / "theirs.pth"), is_frozen=lambda weight: True)
    assert report.resized == ["backbone.pos_embed 1x17x16 -> 1x65x16"]
    theirs.set_input_size((64, 64))
    img = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(img).tokens_BND, theirs.forward_features(img)[:, 1:])


def test_a_file_of_another_model_is_refused(tmp_path):
    path = saved(of_timm("test_resnet", 32), tmp_path / "resnet.pth")
    with pytest.raises((ValueError, UnknownFormat), match=r"resnet\.pth"):
        initialise_encoder(encoder("test_convnext", 32), path, is_frozen=lambda weight: True)


# ---------------------------------------------------------------- runs


def knn(bank_MD: np.ndarray, bank_labels_M: np.ndarray, queries_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of queries that their three nearest by cosine classify, each with the weight exp(similarity / .07)."""
    bank_MD, queries_ND = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank_MD, queries_ND))
    right = 0
    for similarity_M, label in zip(queries_ND @ bank_MD.T, labels_N, strict=True):
        nearest = np.argsort(-similarity_M)[:3]
        votes = np.zeros(10)
        np.add.at(votes, bank_labels_M[nearest], np.exp(similarity_M[nearest] / 0.07))
        right += votes.argmax() == label
    return right / len(labels_N)


@pytest.mark.slow
def test_continued_pretraining_starts_from_the_features_of_the_file(tmp_path):
    theirs = of_timm("test_convnext", 32)
    keys = {
        "INIT.checkpoint": str(saved(theirs, tmp_path / "theirs.pth")),
        "ENCODER.name": "timm",
        "ENCODER.model": "test_convnext",
        "ENCODER.hidden": "replace",
        "DATA.channels": 3,
        "DATA.mean": [0.5, 0.5, 0.5],
        "DATA.std": [0.5, 0.5, 0.5],
        "HEAD.name": "pixel_shuffle",
        "TRAIN.epochs": 1,
        "TRAIN.precision": "fp32",
        "SCHEDULE.warmup_epochs": 0,
        "EVALUATE.at_start": True,
    }
    mim.train("quickstart/mae_digits", keys, output=tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    cfg = mim.load_config(tmp_path / "run" / "config.yaml", {"INIT.checkpoint": ""})
    tables = []
    for source in build_data(cfg):
        (part,) = Reader(len(source), workers=0).read(evaluation_data(cfg, source), range(len(source)))
        img_BCHW = part.batch.images_BCHW.float() / 255 * 2 - 1
        tables += [theirs.forward_features(img_BCHW).detach().mean((2, 3)).numpy(), part.batch.labels.numpy()]
    assert first["step"] == 0
    assert first["knn/top1"] == pytest.approx(knn(*tables), abs=0.003)  # one image of 360, whose neighbours are as near


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "convnextv2_atto"])
def test_converting_a_run_to_timm_and_back_keeps_every_bit(name, tmp_path):
    side, options = SMALL[name]
    ours = encoder(name, side)
    sections = {
        "TASK": "pretrain",
        "ENCODER": {"name": "timm", "model": name, "options": list(options)},
        "DATA": {"channels": 3, "image_size": [side, side]},
    }
    state = {f"encoder.{key}": weight for key, weight in ours.state_dict().items()}
    path = tmp_path / "ours.safetensors"
    weights = ModelWeights(state, sections, "run")
    report = interop.Timm().write(weights, path)
    assert report.left_out == []
    theirs = eval(report.usage, {"timm": timm})  # as a user pastes it
    for key, weight in theirs.state_dict().items():
        assert torch.equal(weight, ours.backbone.state_dict()[key]), key
    back = read(path, "weights")
    assert back.sections["ENCODER"] == sections["ENCODER"]
    assert back.state.keys() == state.keys()
    interop.Native().write(weights, tmp_path / "ours.pt")
    assert initialise_encoder(encoder(name, side), tmp_path / "ours.pt", is_frozen=lambda weight: True).unexpected == []


def test_pretrained_weights_come_in_when_a_run_starts_and_not_before(tmp_path):
    theirs = of_timm("test_resnet", 32)
    overlay = f"pretrained_cfg_overlay={{file: {saved(theirs, tmp_path / 'theirs.pth')}, mean: [0.1, 0.2, 0.3]}}"
    ours = Timm(ImageSpec(3, 32, 32), model="test_resnet", pretrained=True, options=(overlay,))
    name = "layer1.0.conv1.weight"
    assert not torch.equal(ours.backbone.state_dict()[name], theirs.state_dict()[name])  # also of a run that is resumed
    (line,) = ours.load_published()
    for key, weight in ours.backbone.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[key]), key
    assert "DATA.mean [0.1, 0.2, 0.3]" in line
    absent = overlay.replace("theirs.pth", "absent.pth")
    with pytest.raises(ValueError, match=r"ENCODER.pretrained.*test_resnet.*INIT\.checkpoint"):
        Timm(ImageSpec(3, 32, 32), model="test_resnet", pretrained=True, options=(absent,)).load_published()


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_first_layer_of_a_file_is_adapted_to_other_channels(name, tmp_path):
    """Its sum over channels is what it gives a grey image in three channels."""
    side = SMALL[name][0]
    theirs = of_timm(name, side)
    torch.manual_seed(2)
    ours = Timm(ImageSpec(1, side, side), model=name, options=SMALL[name][1], hidden="none").eval()
    report = initialise_encoder(ours, saved(theirs, tmp_path / "theirs.pth"), lambda weight: True, adapt_channels=True)
    assert (report.missing, report.reshaped) == ([], [])
    grey = torch.randn(2, 1, side, side)
    expected = theirs.forward_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours.backbone.forward_features(grey), expected, rtol=1e-4, atol=1e-4)
