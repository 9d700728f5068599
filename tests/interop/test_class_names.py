"""Names of classes survive every format that has a classifier, and are what transformers says."""

import json
from pathlib import Path

import pytest
import torch
from converted import CLASSES, sample
from safetensors.torch import load_file, save_file

from mim.convert import convert
from mim.engine import checkpoint
from mim.interop import read

NAMES = ["cat", "dog, wild", "na\u00efve owl", "7", "LABEL_0"]
assert len(NAMES) == CLASSES


def write_named(tmp_path: Path, model: str, classes: object = tuple(NAMES)) -> Path:
    """A checkpoint with these names of its classes."""
    return sample(model).write(tmp_path / "ours.pt", classes=list(classes) if isinstance(classes, tuple) else classes)


def labels_of(folder: Path) -> tuple[dict, dict]:
    config = json.loads((folder / "config.json").read_text())
    return config["id2label"], config["label2id"]


@pytest.mark.parametrize(
    ("model", "to", "file"),
    [
        ("vit-mean", "mim", "out.pt"),
        ("vit-mean", "timm", "out.pth"),
        ("vit-mean", "timm", "out.safetensors"),
        ("vit-mean", "mae", "out.pth"),
        ("vit-probe", "mae", "out.pth"),
        ("vit-class", "transformers", "out"),
        ("swin-mean-square", "transformers", "out"),
        ("swin-mean", "simmim", "out.pth"),
        ("beit-class", "simmim", "out.pth"),
    ],
)
def test_names_of_classes_survive_a_format_and_the_way_back(tmp_path: Path, model: str, to: str, file: str) -> None:
    convert(write_named(tmp_path, model), tmp_path / file, to)
    assert read(tmp_path / file, "IN", to).classes == tuple(NAMES)
    convert(tmp_path / file, tmp_path / "back.pt", "mim")
    assert checkpoint.load(tmp_path / "back.pt")["classes"] == NAMES


def test_transformers_has_the_names_in_both_maps(tmp_path: Path) -> None:
    lines = convert(write_named(tmp_path, "vit-class"), tmp_path / "hf", "transformers")
    assert "  5 classes: cat, dog, wild, na\u00efve owl, 7, LABEL_0" in lines
    id2label, label2id = labels_of(tmp_path / "hf")
    assert id2label == {str(number): name for number, name in enumerate(NAMES)}
    assert label2id == {name: number for number, name in enumerate(NAMES)}
    assert "mim_classes" not in json.loads((tmp_path / "hf" / "config.json").read_text())


@pytest.mark.parametrize("classes", [None, ("cat",) * CLASSES, ("cat", "dog"), {"cat": 1}, ("cat", "dog", "owl", 7, 8)])
def test_transformers_has_numbered_labels_where_names_are_missing_repeat_or_do_not_fit(tmp_path: Path, classes) -> None:
    lines = convert(write_named(tmp_path, "vit-class", classes), tmp_path / "hf", "transformers")
    assert any("5 classes: no names in the file" in line for line in lines) == (classes != ("cat",) * CLASSES)
    assert labels_of(tmp_path / "hf")[0] == {str(number): f"LABEL_{number}" for number in range(CLASSES)}
    convert(tmp_path / "hf", tmp_path / "back.pt", "mim")
    assert "classes" not in checkpoint.load(tmp_path / "back.pt")


@pytest.mark.parametrize("labels", [["cat"], {}, {"0": 3}, {"0": {"a": []}}, 7, {str(n): n for n in range(CLASSES)}])
def test_labels_that_are_no_names_are_left_out(tmp_path: Path, labels) -> None:
    convert(write_named(tmp_path, "vit-class"), tmp_path / "hf", "transformers")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": labels}))
    assert read(tmp_path / "hf", "IN").classes == ()


@pytest.mark.parametrize("text", ["[", '["cat"]', "{}", "3", "[" * 100_000, json.dumps([1, 2, 3, 4, 5])])
def test_metadata_that_holds_no_names_is_left_out(tmp_path: Path, text: str) -> None:
    convert(write_named(tmp_path, "vit-mean"), tmp_path / "out.safetensors", "timm")
    weights = load_file(tmp_path / "out.safetensors")
    save_file(weights, tmp_path / "other.safetensors", {"mim_classes": text})
    assert read(tmp_path / "other.safetensors", "IN", "timm").classes == ()


def test_a_pretrained_model_has_no_classes(tmp_path: Path) -> None:
    path = sample("mae").write(tmp_path / "ours.pt", classes=NAMES)
    assert read(path, "IN").classes == ()
    convert(path, tmp_path / "out.pth", "timm")
    assert "mim_classes" not in torch.load(tmp_path / "out.pth", weights_only=True)
