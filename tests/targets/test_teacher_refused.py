"""Teachers that cannot be: files of other weights, images of a size that a network cannot have, files that moved."""

import re
import shutil

import pytest
import timm
import torch
from processes import RECIPE, TINY, call

from mim import build_model, load_encoder
from mim.build import load_config
from mim.build.models import build_without_memory
from mim.config import parse_config
from mim.engine import checkpoint

SIZE = (64, 96)
TEXT = """
TASK: pretrain
DATA: {{image_size: [64, 96], channels: 3, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.25]}}
MASKER: {{name: {masker}, cell: 16, ratio: 0.5}}
ENCODER: {{name: vit, hidden: drop, patch: 16, width: 24, depth: 2, heads: 2}}
HEAD: {{name: transformer, width: 16, depth: 1, heads: 2}}
TARGET: {target}
LOSS: {{name: mse}}
"""


def config(target, masker="random", **keys):
    words = "".join(f", {key}: {value}" for key, value in keys.items())
    return parse_config(TEXT.format(target=target.replace("}", f"{words}}}"), masker=masker))


def teacher(file, masker="random", **keys):
    return config("{name: teacher, norm: none}", masker, checkpoint=file, **keys)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of timm and of this toolkit: complete, with a block less, a weight of another shape, or one too many."""
    folder = tmp_path_factory.mktemp("teachers")
    state = timm.create_model("test_vit", img_size=SIZE).state_dict()
    torch.save(state, folder / "vit.pth")
    torch.save({name: each for name, each in state.items() if "blocks.1.attn" not in name}, folder / "part.pth")
    torch.save({**state, "norm.weight": torch.zeros(3)}, folder / "shape.pth")
    torch.save({**state, "extra.weight": torch.zeros(3)}, folder / "extra.pth")
    cfg = config("{name: pixels}")
    state = build_model(cfg).state_dict()
    for name, left_out in (("own.pt", "no such"), ("own_part.pt", "blocks.1.mlp")):
        kept = {name: each for name, each in state.items() if left_out not in name}
        checkpoint.write(folder / name, {"step": 1, "model": kept, "ema": {}, "config": cfg.to_yaml()})
    return folder


@pytest.mark.parametrize("masker", ["random", "semantic"])
@pytest.mark.parametrize(
    ("name", "model", "weights"),
    [
        ("part.pth", "test_vit", "missing in the file, .*blocks.1.attn.qkv.{weight, bias}"),
        ("shape.pth", "test_vit", "of another shape, .*norm.weight 3 for 64"),
        ("extra.pth", "test_vit", "in the file only, .*extra.weight"),
        ("own_part.pt", '""', "missing in the file, .*blocks.1.mlp.fc1.{weight, bias}"),
    ],
)
def test_file_that_does_not_fit_is_named_with_its_weights_and_keys_that_exist(files, name, model, weights, masker):
    with pytest.raises(ValueError, match=rf"TARGET\.checkpoint {files / name}: ") as caught:
        build_model(teacher(files / name, masker, model=model))
    text = str(caught.value)
    assert re.search(weights, text)
    assert "with TARGET.model" in text
    assert "TARGET.image_size" in text
    assert "strict" not in text
    assert "ENCODER." not in text


def test_file_of_another_model_of_timm_says_which_one_it_should_be(files):
    with pytest.raises(ValueError, match=r"(?s)vit\.pth: .*only \d+%.*\nTARGET\.model is test_resnet: it must be the"):
        build_model(teacher(files / "vit.pth", model="test_resnet"))


def test_file_that_does_not_fit_can_be_loaded_as_far_as_it_goes_by_python_alone(files):
    with pytest.raises(ValueError, match=r"not exactly those of the encoder vit, .*\(strict=False loads what fits\)"):
        load_encoder(files / "own_part.pt")
    assert load_encoder(files / "own_part.pt", strict=False).spec.width == 24


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize(
    ("name", "model", "reason", "size"),
    [
        ("own.pt", '""', "its patch 16 does not divide the image height 60", "[64, 96]"),
        ("vit.pth", "test_vit", "the encoder's patch 16 does not divide the image height 60", "[160, 160]"),
    ],
)
def test_size_that_a_teacher_cannot_have_is_named_by_its_key_with_one_that_it_can(
    files, name, model, reason, size, on_meta
):
    build = build_without_memory if on_meta else build_model
    with pytest.raises(ValueError, match=r"cannot have images of 60x64 px") as caught:
        build(teacher(files / name, model=model, image_size=[60, 64]))
    text = str(caught.value)
    assert text.startswith(f"TARGET.checkpoint {files / name}: ")
    assert f'{reason}. Set TARGET.image_size "{size}"' in text
    assert "ENCODER." not in text
    if name == "own.pt":  # the file of timm has positions of another size
        build(teacher(files / name, model=model, image_size=size))


def test_teacher_without_a_file_yet_names_the_size_that_it_cannot_have():
    cfg = teacher('""', model="test_convnext", image_size=[60, 60])
    with pytest.raises(ValueError, match=r'TARGET\.checkpoint test_convnext: .*TARGET\.image_size "\[160, 160\]"'):
        build_without_memory(cfg)


def test_file_at_a_relative_path_is_told_where_it_was_looked_for(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    build_without_memory(teacher("own.pt"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"TARGET\.checkpoint own\.pt: .*\(it would be {tmp_path}/own\.pt\)"):
        build_without_memory(teacher("own.pt"))
    targets = f"[{{name: pixels}}, {{name: teacher, checkpoint: {tmp_path}/gone.pt}}]"
    with pytest.raises(ValueError, match=r"TARGET\.1\.checkpoint .*gone\.pt does not exist: set TARGET\.1\.checkpoint"):
        build_model(parse_config(TEXT.format(target=targets, masker="random")))


@pytest.mark.slow
def test_run_from_another_working_folder_says_where_its_teacher_should_be_and_goes_on_with_it(tmp_path, monkeypatch):
    keys = TINY | {"TRAIN.batch": 256, "DATA.batch_size": 256, "EVALUATE.knn": 0, "EVALUATE.samples": 8}
    keys |= {"CHECKPOINT.every_minutes": 1e-6, "CHECKPOINT.keep": 9}
    words = [str(word) for pair in keys.items() for word in pair]
    cfg = load_config(RECIPE, words)
    start, elsewhere, run = tmp_path / "start", tmp_path / "elsewhere", tmp_path / "run"
    for folder in (start, elsewhere):
        folder.mkdir()
    state = build_model(cfg).state_dict()
    checkpoint.write(start / "teacher.pt", {"step": 1, "model": state, "ema": {}, "config": cfg.to_yaml()})
    keys |= {"TARGET.name": "teacher", "TARGET.checkpoint": "teacher.pt"}
    monkeypatch.chdir(start)
    code, text = call(run, keys, RECIPE)
    assert code == 0, text
    (run / "checkpoints" / "last").write_text("step-3.pt\n")
    (run / "summary.json").unlink()
    monkeypatch.chdir(elsewhere)
    code, text = call(run, keys, RECIPE)
    assert code == 2, text
    assert (
        f"TARGET.checkpoint teacher.pt: teacher.pt does not exist in the working folder (it would be {elsewhere}"
        in (text)
    )
    shutil.move(start / "teacher.pt", tmp_path / "moved.pt")
    code, text = call(run, keys | {"TARGET.checkpoint": tmp_path / "moved.pt"}, RECIPE)
    assert code == 0, text
    assert "at step 3 of 5" in text
