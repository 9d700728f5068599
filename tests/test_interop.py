"""INIT.checkpoint: encoder weights of an earlier run, with a report; another encoder's are refused whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_data import write_recipe
from torch import Tensor

from mim import build_model, load_config
from mim.encoders import Encoder, Swin, ViT
from mim.engine import checkpoint
from mim.interop.initialise import LoadReport, initialise_encoder
from mim.structures import ImageSpec

IMAGE = ImageSpec(1, 32, 32)
SMALL = {"patch": 8, "width": 16, "depth": 2, "heads": 2}
SWIN = {"patch": 4, "width": 8, "depths": (1, 1), "heads": (2, 2), "window": 4}


def vit(hidden: str = "drop", **keys: object) -> ViT:
    return ViT(IMAGE, hidden=hidden, **{**SMALL, **keys})


def write(path: Path, encoder: Encoder) -> Path:
    """A checkpoint as a run writes it, with a head beside the encoder."""
    weights = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    checkpoint.write(path, {"step": 3, "model": {**weights, "head.norm.weight": torch.ones(4)}})
    return path


@pytest.fixture
def source() -> ViT:
    """An encoder whose weights are all unlike those of a new one."""
    torch.manual_seed(1)
    encoder = vit()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return encoder


def copy(encoder: Encoder) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in encoder.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> Iterator[str]:
    return (name for name in one if torch.equal(one[name], two[name]))


def test_initialise_loads_every_weight_of_the_same_encoder(tmp_path: Path, source: ViT) -> None:
    encoder, path = vit(), write(tmp_path / "a.pt", source)
    report = initialise_encoder(encoder, path)
    assert list(equal(encoder.state_dict(), source.state_dict())) == list(source.state_dict())
    assert report == LoadReport(path, sorted(source.state_dict()), [], [], [])
    img_BCHW = torch.randn(2, 1, 32, 32)
    assert torch.equal(encoder.eval()(img_BCHW).tokens_BND, source.eval()(img_BCHW).tokens_BND)


def test_initialise_replacing_encoder_from_a_dropping_one_keeps_its_mask_token(tmp_path: Path, source: ViT) -> None:
    encoder = vit("replace")
    token = encoder.mask_token.detach().clone()
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.missing == ["mask_token"]
    assert (report.unexpected, report.reshaped) == ([], [])
    assert torch.equal(encoder.mask_token, token)
    assert set(equal(encoder.state_dict(), {**source.state_dict(), "mask_token": token})) == {*encoder.state_dict()}


@pytest.mark.parametrize("hidden", ["drop", "none"])
def test_initialise_leaves_a_mask_token_in_the_file(tmp_path: Path, hidden: str) -> None:
    source, encoder = vit("replace"), vit(hidden)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.unexpected == ["mask_token"]
    assert (report.missing, report.reshaped) == ([], [])
    assert set(report.loaded) == set(encoder.state_dict())


def test_initialise_keeps_what_has_another_shape(tmp_path: Path, source: ViT) -> None:
    """Another image size: all is loaded but the position table."""
    encoder = ViT(ImageSpec(1, 32, 48), hidden="drop", **SMALL)
    before = copy(encoder)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.reshaped == ["backbone.pos_embed (1, 17, 16) for (1, 25, 16)"]
    assert (report.missing, report.unexpected) == ([], [])
    assert torch.equal(encoder.backbone.pos_embed, before["backbone.pos_embed"])
    assert torch.equal(encoder.backbone.norm.weight, source.backbone.norm.weight)


def test_initialise_swin_from_its_own_checkpoint(tmp_path: Path) -> None:
    source, encoder = Swin(IMAGE, **SWIN), Swin(IMAGE, **SWIN)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert len(list(equal(encoder.state_dict(), source.state_dict()))) == len(report.loaded) == len(source.state_dict())


def test_load_report_says_in_lines_what_was_left_out() -> None:
    lines = LoadReport(Path("a.pt"), ["x", "y"], ["mask_token"], ["extra"], ["pos (1) for (2)"]).lines()
    assert lines[0] == "a.pt: 2 encoder weights loaded"
    assert lines[1:] == [
        "  missing in the file, kept as initialised: mask_token",
        "  in the file only, left out: extra",
        "  of another shape, left out: pos (1) for (2)",
    ]
    assert len(LoadReport(Path("a.pt"), ["x"], [], [], []).lines()) == 1


@pytest.mark.parametrize("other", [lambda: vit(width=24), lambda: Swin(IMAGE, **SWIN)], ids=["wider", "swin"])
def test_initialise_from_another_encoder_is_refused_and_changes_nothing(tmp_path: Path, source: ViT, other) -> None:
    encoder = other()
    before = copy(encoder)
    with pytest.raises(ValueError, match=r"holds another encoder: only \d+% of this one's weights") as caught:
        initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    message = str(caught.value)
    assert str(tmp_path / "a.pt") in message
    assert "at least 50%" in message
    assert set(equal(encoder.state_dict(), before)) == set(before)


def test_initialise_from_too_few_weights_names_the_share(tmp_path: Path, source: ViT) -> None:
    encoder = vit(depth=6)
    own = encoder.state_dict()
    fitting = sum(own[name].numel() for name in source.state_dict())
    share = fitting / sum(weight.numel() for weight in own.values())
    assert share < 0.5
    before = copy(encoder)
    with pytest.raises(ValueError, match=f"only {share:.0%} of this one's weights"):
        initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert set(equal(encoder.state_dict(), before)) == set(before)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"head.weight": torch.zeros(2)}},
        {"model": {}},
        {"model": None},
        {"model": "vit_base"},
        {"model": torch.zeros(3)},
        {"model": [torch.zeros(3)]},
        {"state": 3},
        torch.zeros(3),
        [1, 2],
        {},
    ],
)
def test_initialise_from_a_file_without_an_encoder_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*a\.pt holds no encoder"):
        initialise_encoder(vit(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello world, no checkpoint\n", b"(a mark\n", b"PK\x03\x04 broken"])
def test_initialise_from_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*a\.pt"):
        initialise_encoder(vit(), path)


def test_initialise_from_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*none\.pt does not exist"):
        initialise_encoder(vit(), tmp_path / "none.pt")


def test_initialise_takes_what_a_model_of_a_config_saves(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    first = build_model(load_config(recipe, ["SEED", "1"]))
    checkpoint.save(tmp_path, 4, {"model": first.state_dict()}, keep=1)
    second = build_model(load_config(recipe, ["ENCODER.hidden", "replace"]))
    report = initialise_encoder(second.encoder, tmp_path / "step-4.pt")
    assert report.missing == ["mask_token"]
    for name, weight in first.encoder.state_dict().items():
        assert torch.equal(second.encoder.state_dict()[name], weight)
