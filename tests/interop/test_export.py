"""Exported programs answer as their models, in onnxruntime and in a process that has PyTorch alone.

Shapes: B batch, C channels, H W pixels.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import IMAGE, classes, images, shaken, small
from torch import Tensor

from mim.criteria.cross_entropy import CrossEntropy
from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.interop import export
from mim.interop.export import Program, write_program
from mim.readouts import Predictor
from mim.readouts.attentive import Attentive
from mim.structures import ImageSpec

BATCHES = (1, 4, 9)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
SQUARE = ImageSpec(3, 64, 64)
TIMM = {
    "timm ViT": {"model": "vit_tiny_patch16_224", "options": ("depth=2",)},
    "timm ConvNeXt": {"model": "convnext_atto", "options": ("depths=[1,1,2,1]",)},
    "timm ResNet": {"model": "resnet18", "options": ()},
}
FRESH = """
import sys
import torch

for case, (path, images) in torch.load("cases.pt").items():
    program = torch.export.load(path).module()
    torch.save([program(each) for each in images], path + ".answers")
assert not {"mim", "timm", "torchvision", "einops"} & set(sys.modules)
"""


def encoder(name: str, image: ImageSpec = IMAGE, **keys) -> Encoder:
    """With weights that all matter."""
    torch.manual_seed(0)
    if name in TIMM:
        return Encoder.named("timm")(SQUARE, hidden="none", **TIMM[name]).eval()
    return shaken(small(Encoder.named(name), image, hidden="none", **keys)).eval()


def by_hand(model: Encoder, img_BCHW: Tensor) -> dict[str, Tensor]:
    """The features of normalised images, without a Program."""
    with torch.no_grad():
        features = model(img_BCHW)
    values = {"tokens": features.tokens_BND, "prefix": features.prefix_BKD, "pooled": features.tokens_BND.mean(1)}
    return {name: value for name, value in values.items() if value is not None}


def assert_close(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    assert list(theirs) == list(ours)
    for name, value in ours.items():
        assert theirs[name].shape == value.shape
        assert (theirs[name] - value).abs().max() <= 1e-4 * value.abs().max(), name


def in_onnxruntime(path: Path, images_BCHW: Tensor) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {"images": images_BCHW.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def needs_onnx() -> None:
    for package in export.PACKAGES:
        pytest.importorskip(package, reason="ONNX needs the extra mim-toolkit[export]")


# -------------------------------------------------------------------- answers


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_program_of_vit_normalises_inside_and_takes_any_batch(tmp_path, ending):
    if ending == ".onnx":
        needs_onnx()
    model, path = encoder("vit", depth=1), tmp_path / f"vit{ending}"
    switches = [vars(module).get("fused_attn") for module in model.modules()]
    written = write_program(Program(model, (), Preprocess(MEAN, STD)), path, {"mim_source": "a run"})
    assert 0 <= written.difference <= 1e-4
    assert written.shapes == {"tokens": (32, 16), "prefix": (1, 16), "pooled": (16,)}
    assert switches == [vars(module).get("fused_attn") for module in model.modules()]
    assert str(Path(export.__file__).parent).encode() not in path.read_bytes()
    images_BCHW = torch.rand(5, 3, 32, 64)
    if ending == ".onnx":
        import onnx

        file = onnx.load(path)
        assert {each.key: each.value for each in file.metadata_props}["mim_source"] == "a run"
        assert [each.version for each in file.opset_import] == [20]
        theirs = in_onnxruntime(path, images_BCHW)
    else:
        facts = {export.METADATA: ""}
        theirs = torch.export.load(path, extra_files=facts).module()(images_BCHW)
        assert json.loads(facts[export.METADATA]) == {"mim_source": "a run"}
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert_close(theirs, by_hand(model, (images_BCHW - mean_C11) / std_C11))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "beit", "swin", "swin_v2", *TIMM])
def test_onnx_of_every_encoder_answers_as_the_encoder_at_three_batches(tmp_path, name):
    needs_onnx()
    model, path = encoder(name), tmp_path / "encoder.onnx"
    write_program(Program(model), path, {})
    for batch in BATCHES:
        img_BCHW = images(batch, model.image)
        assert_close(in_onnxruntime(path, img_BCHW), by_hand(model, img_BCHW))


@pytest.mark.slow
def test_pt2_of_every_encoder_answers_as_the_encoder_in_a_process_with_torch_alone(tmp_path):
    models = {name: encoder(name) for name in ["vit", "beit", "swin", "swin_v2", *TIMM]}
    cases = {}
    for name, model in models.items():
        write_program(Program(model), tmp_path / f"{name}.pt2", {})
        cases[name] = (f"{name}.pt2", [images(batch, model.image) for batch in BATCHES])
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run([sys.executable, "-I", "-c", FRESH], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (path, batches) in cases.items():
        answers = torch.load(tmp_path / f"{path}.answers")
        for theirs, img_BCHW in zip(answers, batches, strict=True):
            assert_close(theirs, by_hand(models[name], img_BCHW))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_program_of_shifted_windows_holds_their_mask(tmp_path, ending):
    """Without the mask of a shifted window the tokens of its parts would attend to each other."""
    if ending == ".onnx":
        needs_onnx()
    model, path = encoder("swin"), tmp_path / f"swin{ending}"
    masks = [module for module in model.modules() if getattr(module, "attn_mask", None) is not None]
    assert masks
    write_program(Program(model, ["tokens"]), path, {})
    img_BCHW = images(3)
    ours = by_hand(model, img_BCHW)["tokens"]
    program = torch.export.load(path).module() if ending == ".pt2" else lambda img: in_onnxruntime(path, img)
    theirs = program(img_BCHW)["tokens"]
    for module in masks:
        module.attn_mask.zero_()
    without = by_hand(model, img_BCHW)["tokens"]
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max() < 0.01 * (without - ours).abs().max()


@pytest.mark.slow
def test_onnx_of_an_attentive_readout_gives_its_scores(tmp_path):
    needs_onnx()
    model = encoder("vit")
    predictor = Predictor(model, [Attentive(model.spec, 7, queries=4, heads=2)], CrossEntropy(classes(7))).eval()
    for parameter in predictor.readouts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    write_program(Program(predictor), tmp_path / "scores.onnx", {})
    with torch.no_grad():
        (scores,) = predictor(images(6))
    assert_close(in_onnxruntime(tmp_path / "scores.onnx", images(6)), {"scores": scores})


# -------------------------------------------------------------------- refusals


def refuse(path: Path, match: str, program: Program) -> None:
    """Nothing is written, and an older file stays."""
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match=match):
        write_program(program, path, {})
    assert path.read_bytes() == b"older"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_program_refuses_models_that_hide_other_features_and_other_weights():
    hiding = small(Encoder.named("vit"), IMAGE, hidden="drop")
    with pytest.raises(ValueError, match=r"ENCODER.hidden is drop: an exported encoder sees whole images, so it must"):
        Program(hiding)
    with pytest.raises(ValueError, match=r"--features names 'prefix', which swin has not: Allowed: pooled, tokens"):
        Program(encoder("swin"), ["prefix"])
    with pytest.raises(ValueError, match=r"weights of this model are torch.bfloat16: .*call model.float\(\) first"):
        Program(encoder("vit").bfloat16())


def test_check_file_names_endings_and_the_extra_of_a_missing_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--output is a.pth: name a file that ends in .onnx \(ONNX\) or .pt2"):
        export.check_file(Path("a.pth"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    with pytest.raises(ValueError, match=r"needs the packages onnx, .*pip install 'mim-toolkit\[export\]'"):
        export.check_file(tmp_path / "a.onnx")
    export.check_file(tmp_path / "a.pt2")


def test_write_program_refuses_what_a_file_of_onnx_cannot_hold(tmp_path, monkeypatch):
    needs_onnx()
    monkeypatch.setattr(export, "MOST_ONNX", 1000)
    refuse(
        tmp_path / "a.onnx", r"the weights take 0.0 GiB, and a file of ONNX holds less than 2 GiB", encoder_program()
    )


def test_write_program_refuses_a_program_that_answers_otherwise(tmp_path):
    model = encoder("vit", drop_path=0.9).train()  # two calls of it differ
    refuse(tmp_path / "a.pt2", r"of a batch of 1 in PyTorch .* differ from those of the model by", Program(model))


@pytest.mark.slow
def test_write_program_refuses_values_that_are_not_finite(tmp_path):
    model = encoder("vit")
    model.backbone.norm.weight.data.fill_(float("nan"))
    refuse(tmp_path / "a.pt2", "tokens are not finite: the training diverged", Program(model))


class Branching(torch.nn.Module):
    """Takes another way where a value is positive, which no graph can hold."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens if tokens.sum() > 0 else -tokens


@pytest.mark.slow
def test_write_program_says_what_pytorch_cannot_export(tmp_path):
    model = encoder("vit")
    model.backbone.blocks.append(Branching())
    refuse(tmp_path / "a.pt2", "a.pt2: PyTorch cannot export vit: ", Program(model))


def encoder_program() -> Program:
    return Program(encoder("vit", depth=1))
