"""tools/export.py: programs answer as the checkpoint does and say what they are; the commands of the page run.

Shapes: B batch, C channels, H W pixels.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from converted import MODELS, Sample, sample
from processes import FINETUNE, ROOT, TINY, TINY_CLASSIFIER, call, tool
from torch import Tensor

from mim import build_predictor, load_encoder
from mim.config import parse_config
from mim.structures import LabelSpec

MEAN, STD = 0.4, 0.3  # of all samples


def main(*words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of the command in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = tool("export").main([str(word) for word in words])
    return code, out.getvalue(), errors.getvalue()


def exported(*words: object) -> str:
    code, out, errors = main(*words)
    assert code == 0, out + errors
    return out


def opened(path: Path) -> tuple[torch.nn.Module, dict[str, str]]:
    """The program of a .pt2, and what it says of itself."""
    facts = {"mim.json": ""}
    program = torch.export.load(path, extra_files=facts).module()
    return program, json.loads(facts["mim.json"])


def unit_images(of: Sample, batch: int) -> tuple[Tensor, Tensor]:
    """Images from 0 to 1, and the same normalised."""
    images_BCHW = of.images(batch).sigmoid()
    return images_BCHW, (images_BCHW - MEAN) / STD


def close(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and bool((theirs - ours).abs().max() <= 1e-5 * ours.abs().max())


# -------------------------------------------------------------------- what comes out


def test_export_of_a_finetuning_gives_scores_and_the_names_of_classes(tmp_path: Path) -> None:
    of, names = sample("vit-class"), ["ant", "bee", "cat", "dog", "elk"]
    run = of.write(tmp_path / "run.pt", classes=names)
    out = exported(run, "--output", tmp_path / "new" / "scores.pt2")
    assert "values from 0 to 1, normalised inside with mean [0.4, 0.4, 0.4] and std [0.3, 0.3, 0.3]" in out
    assert "to scores (batch, 5)\n" in out
    assert re.search(r"at batches of 1, 3, 8: largest difference \S+ of the largest value \(1e-04 is allowed\)", out)
    program, facts = opened(tmp_path / "new" / "scores.pt2")
    assert (facts["mim_normalisation"], facts["mim_source"], facts["mim_label_kind"]) == ("inside", "run.pt", "class")
    assert json.loads(facts["mim_classes"]) == names
    assert [json.loads(facts[key]) for key in ("mim_mean", "mim_std")] == [[0.4] * 3, [0.3] * 3]
    images_BCHW, img_BCHW = unit_images(of, 5)
    assert close(program(images_BCHW)["scores"], of.scores(img_BCHW))


@pytest.mark.slow
def test_export_of_a_probe_gives_the_scores_of_one_setting(tmp_path: Path) -> None:
    of = sample("vit-probe-mean")
    run, file = of.write(tmp_path / "run.pt"), tmp_path / "a.pt2"
    code, _, errors = main(run, "--output", file)
    assert (code, file.exists()) == (2, False)
    assert "has 2 settings and no score that says which is best: name one with --setting: rate 1; rate 2" in errors
    images_BCHW, img_BCHW = unit_images(of, 3)
    with torch.no_grad():
        first, second = of.model(img_BCHW)
    exported(run, "--output", file, "--setting", "rate 2")
    program, facts = opened(file)
    assert facts["mim_setting"] == "rate 2, one of 2"
    assert close(program(images_BCHW)["scores"], second)
    assert not close(first, second)


@pytest.mark.slow
def test_export_of_numbers_says_how_scores_become_answers(tmp_path: Path) -> None:
    cfg = parse_config(yaml.safe_dump({**MODELS["vit-class"], "CRITERION": {"name": "mse"}}))
    model = build_predictor(cfg, LabelSpec("number", ("weight", "age"))).eval()
    torch.nn.init.normal_(model.readouts[0].linear.weight)
    model.criterion.mean_K.copy_(torch.tensor([70.0, 40.0]))
    model.criterion.std_K.copy_(torch.tensor([12.0, 9.0]))
    of = Sample(cfg, model)
    run = of.write(tmp_path / "run.pt", classes=["weight", "age"], label_kind="number")
    exported(run, "--output", tmp_path / "a.pt2")
    program, facts = opened(tmp_path / "a.pt2")
    assert (facts["mim_label_kind"], facts["mim_criterion"]) == ("number", "mse")
    mean_K, std_K = (torch.tensor(json.loads(facts[key])) for key in ("mim_label_mean", "mim_label_std"))
    images_BCHW, img_BCHW = unit_images(of, 4)
    answers = model.criterion.answers(of.scores(img_BCHW)).float()
    assert close(program(images_BCHW)["scores"] * std_K + mean_K, answers)
    assert answers.std(dim=0).min() > 0.1


@pytest.mark.slow
def test_export_of_features_takes_the_encoder_of_a_finetuning_at_another_size(tmp_path: Path) -> None:
    of = sample("vit-class")
    run, file = of.write(tmp_path / "run.pt"), tmp_path / "a.pt2"
    size = ("DATA.image_size", "[64,48]")
    out = exported(run, "--output", file, "--features", "pooled,prefix", "--normalisation", "outside", *size)
    assert "images (batch, 3, 64, 48) float32: normalised before, as in training" in out
    program, facts = opened(file)
    assert facts["mim_normalisation"] == "outside"
    img_BCHW = torch.randn(4, 3, 64, 48)
    with torch.no_grad():
        features = load_encoder(run, [size])(img_BCHW)
    answer = program(img_BCHW)
    assert list(answer) == ["pooled", "prefix"]
    assert close(answer["pooled"], features.tokens_BND.mean(dim=1))
    assert close(answer["prefix"], features.prefix_BKD)


@pytest.mark.slow
def test_export_of_a_file_in_bf16_is_in_float32(tmp_path: Path) -> None:
    run = sample("mae").write(tmp_path / "run.pt", torch.bfloat16)
    exported(run, "--output", tmp_path / "a.pt2")
    program, _ = opened(tmp_path / "a.pt2")
    assert {parameter.dtype for parameter in program.parameters()} == {torch.float32}
    images_BCHW, img_BCHW = unit_images(sample("mae"), 2)
    with torch.no_grad():
        features = load_encoder(run)(img_BCHW)
    assert close(program(images_BCHW)["tokens"], features.tokens_BND)


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("mae", ["--output", "a.pth"], r"--output is a.pth: name a file that ends in .onnx \(ONNX\) or .pt2"),
        ("mae", ["--output", "a.pt2", "ENCODER.hidden", "drop"], "ENCODER.hidden is drop: .* so it must be none"),
        ("mae", ["--output", "a.pt2", "--features", "scores"], "--features names 'scores', which vit has not"),
        ("mae", ["--output", "a.pt2", "--setting", "rate 1"], "--setting is 'rate 1', and only scores of a probe"),
        ("vit-class", ["--output", "a.pt2", "--setting", "rate 1"], "--setting is 'rate 1', and the settings of"),
    ],
)
def test_export_refuses_in_one_line_and_writes_nothing(tmp_path, monkeypatch, name, words, reason):
    monkeypatch.chdir(tmp_path)
    sample(name).write(tmp_path / "run.pt")
    code, out, errors = main("run.pt", *words)
    assert (code, errors.count("\n")) == (2, 1), out + errors
    assert re.search(f"^error: .*{reason}", errors, re.MULTILINE), errors
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_export_refuses_a_classifier_of_another_code_base_and_an_unknown_normalisation(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.pth"
    sample("vit-class").write(tmp_path / "run.pt")
    assert tool("convert").main(["--to", "timm", str(tmp_path / "run.pt"), str(theirs)]) == 0
    code, _, errors = main(theirs, "--output", tmp_path / "a.pt2", "ENCODER.heads", "3")
    assert (code, (tmp_path / "a.pt2").exists()) == (2, False)
    assert "holds a classifier in the format timm: convert it first with mim-convert --to mim" in errors
    estimate = ("DATA.mean", "estimate", "DATA.std", "estimate", "INIT.keep", "[DATA.mean,DATA.std]")
    code, _, errors = main(sample("mae").write(tmp_path / "mae.pt"), "--output", tmp_path / "a.pt2", *estimate)
    assert (code, (tmp_path / "a.pt2").exists()) == (2, False)
    assert "does not say how its images were normalised: name DATA.mean and DATA.std, or use --normalisation" in errors


# -------------------------------------------------------------------- the page


@pytest.mark.slow
def test_export_page_commands_and_programs_run(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX needs the extra mim-toolkit[export]")
    monkeypatch.chdir(tmp_path)
    code, text = call(tmp_path / "runs" / "mae", TINY)
    assert code == 0, text
    keys = {**TINY_CLASSIFIER, "INIT.checkpoint": tmp_path / "runs" / "mae"}
    code, text = call(tmp_path / "runs" / "finetune", keys, FINETUNE)
    assert code == 0, text
    page = (ROOT / "docs" / "export.md").read_text()
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 3
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "mim-export"
        exported(*words)
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(code)
        runpy.run_path(name, run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"^inside \d$", printed, re.MULTILINE), printed
    assert '"mim_normalisation": "outside"' in printed
    assert "torch.Size([5, 16])" in printed
