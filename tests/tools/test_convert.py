"""tools/convert.py: a real process, what it prints, its exit codes; and what comes out is what a run would be."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import timm
import torch
from converted import read_checkpoint, tokens_of
from foreign_files import mae_pretrained, simmim_pretrained, swin, swin_buffers, write_mae, write_simmim
from processes import FINETUNE, TINY, TINY_CLASSIFIER, call, last_checkpoint, tool
from warm import Warm

from mim import load_encoder
from mim.interop import WeightsFormat


def main(name: str, *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a tool in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = tool(name).main([str(word) for word in words])
    return code, out.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A pretraining run, and a fine-tuning that came from it."""
    folder = tmp_path_factory.mktemp("runs")
    code, text = call(folder / "pretrain", TINY)
    assert code == 0, text
    code, text = call(folder / "finetune", {**TINY_CLASSIFIER, "INIT.checkpoint": folder / "pretrain"}, FINETUNE)
    assert code == 0, text
    return folder


def figures(folder: Path, *words: object) -> dict:
    code, out, errors = main("evaluate", *words, "--json", folder / "figures.json")
    assert code == 0, out + errors
    metrics = json.loads((folder / "figures.json").read_text())
    return {key: value for key, value in metrics.items() if key.startswith(("knn/", "val/"))}


# -------------------------------------------------------------------- a process


@pytest.mark.slow
def test_convert_process_takes_a_run_folder_and_says_how_to_load_what_it_wrote(
    tmp_path: Path, runs: Path, warm: Warm
) -> None:
    out = tmp_path / "a folder  of encoders" / "an encoder.safetensors"
    code, text = warm.run_program("convert", 1, ["--to", "timm", runs / "pretrain", out], tmp_path / "log")
    assert code == 0, text
    assert all(len(line) <= 120 for line in text.splitlines()[:-1] if str(tmp_path.parent) not in line)
    lines = text.replace("\n    ", " ").splitlines()  # long ones are folded, those of a path are not
    assert lines[0] == f"{last_checkpoint(runs / 'pretrain')}: 30 encoder weights loaded"
    assert lines[1].startswith("  loaded: backbone.{cls_token, pos_embed}, backbone.patch_embed.proj.{weight, bias}, ")
    assert lines[2].startswith("  and after the encoder: head.")
    assert lines[3] == f"{out} (timm): 30 weights written"
    assert lines[4].startswith("  unknown to that format, left out: head.")
    model = eval(lines[5].removeprefix("  to load: "), {"timm": timm}).eval()
    img_BCHW = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        ours = tokens_of(load_encoder(runs / "pretrain"), img_BCHW)
        torch.testing.assert_close(model.forward_features(img_BCHW), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_convert_process_that_is_refused_says_why_and_writes_nothing(tmp_path: Path, warm: Warm) -> None:
    source, out = write_mae(tmp_path / "theirs.pth", mae_pretrained()), tmp_path / "ours.pt"
    code, text = warm.run_program("convert", 1, ["--to", "mim", source, out], tmp_path / "log")
    assert code == 2
    assert text.splitlines() == [
        f"error: {source} does not hold ENCODER.heads and HEAD.heads: give each, as in ENCODER.heads 12 or "
        'DATA.image_size "[224, 224]"'
    ]
    assert not out.exists()


def test_convert_folds_lists_of_names_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = tmp_path / "a folder  of encoders" / "an encoder  of ours.pt"
    source = write_mae(tmp_path / "their  weights.pth", mae_pretrained())
    code, text, errors = main("convert", "--to", "mim", source, out, "ENCODER.heads", "3", "HEAD.heads", "2")
    assert (code, errors) == (0, "")
    lines = text.splitlines()
    assert lines[0].startswith(f"{source}: ")
    assert sum(line.startswith(f"{out} (mim): ") for line in lines) == 1
    assert all(len(line) <= 60 for line in lines if str(tmp_path) not in line)
    assert any(line.startswith("    ") for line in lines)


# -------------------------------------------------------------------- its words


def test_convert_takes_its_words_in_any_order(tmp_path: Path) -> None:
    source = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    for number, words in enumerate(
        (
            ["--from", "mae", "--to", "mim", source, "OUT", "ENCODER.heads", "3", "HEAD.heads", "2"],
            [source, "OUT", "ENCODER.heads", "3", "HEAD.heads", "2", "--from", "mae", "--to", "mim"],
            ["--to", "mim", source, "OUT", "ENCODER.heads", "3", "--from", "mae", "HEAD.heads", "2"],
        )
    ):
        out = tmp_path / f"{number}.pt"
        code, _, errors = main("convert", *(out if word == "OUT" else word for word in words))
        assert (code, errors) == (0, "")
        assert read_checkpoint(out)[0].HEAD.heads == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "keras", "--to", "mim", "a", "b"], "invalid choice: 'keras'"),
        (["--to", "onnx", "a", "b"], "invalid choice: 'onnx'"),
        (["a", "b"], "the following arguments are required: --to"),
        (["--to", "mim", "a"], "required: OUT"),
    ],
)
def test_convert_refuses_words_that_are_none(words: list[str], message: str) -> None:
    code, out, errors = main("convert", *words)
    assert (code, out) == (2, "")
    assert message in errors
    if "choice" in message:
        assert all(name in errors for name in WeightsFormat.members())


@pytest.mark.parametrize(
    ("write", "words", "message"),
    [
        (lambda path: None, [], "does not exist"),
        (lambda path: path.mkdir(), [], "run folder with a checkpoint"),
        (lambda path: path.write_bytes(b"\x89PNG"), [], "cannot be read"),
        (lambda path: write_mae(path, mae_pretrained()), ["ENCODER.heads", "3", "HEAD.heads"], "come in pairs"),
        (lambda path: write_mae(path, mae_pretrained()), ["--from", "simmim"], "(simmim): it holds no Swin"),
        (lambda path: write_mae(path, mae_pretrained(patch=7), input_size=30), ["HEAD.heads", "2"], "ENCODER.heads"),
    ],
    ids=["missing", "empty-folder", "garbage", "odd", "from", "untold"],
)
def test_convert_names_what_to_mend(tmp_path: Path, write, words: list[str], message: str) -> None:
    source, out = tmp_path / "theirs", tmp_path / "ours.pt"
    write(source)
    code, text, errors = main("convert", "--to", "mim", source, out, *words)
    assert (code, text) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert not out.exists()


def test_convert_onto_what_is_no_file_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    source = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    words = (source, "ENCODER.heads", "3", "HEAD.heads", "2")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for to, out in (
        ("mim", tmp_path / "folder"),
        ("transformers", tmp_path / "file"),
        ("mim", tmp_path / "file" / "a.pt"),
    ):
        code, _, errors = main("convert", "--to", to, words[0], out, *words[1:])
        assert (code, errors.startswith("error: "), str(tmp_path) in errors) == (3, True, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "theirs.pth"]


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("mim", "a.safetensors", "mim is written as PyTorch's pickled file: name it .pt or .pth"),
        ("mae", "a.safetensors", "mae is written as PyTorch's pickled file"),
        ("transformers", "a.safetensors", "transformers is written as a folder, so name one without .safetensors"),
        ("transformers", "a.pth", "transformers is written as a folder"),
    ],
)
def test_convert_refuses_a_name_with_the_ending_of_another_kind_of_file(tmp_path, to, out, message) -> None:
    source = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    words = (source, tmp_path / out, "ENCODER.heads", "3", "HEAD.heads", "2")
    code, _, errors = main("convert", "--to", to, *words)
    assert (code, message in errors) == (2, True)
    assert not (tmp_path / out).exists()
    assert main("convert", "--to", "timm", *words[:1], tmp_path / "a.safetensors", *words[2:])[0] == 0


def test_convert_traceback_shows_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        tool("convert").main(["--traceback", "--to", "mim", str(tmp_path / "none.pt"), str(tmp_path / "out.pt")])


# -------------------------------------------------------------------- what comes out


@pytest.mark.parametrize(
    ("to", "out"),
    [
        pytest.param("mae", "a.pth", marks=pytest.mark.slow),
        ("timm", "a.pth"),
        pytest.param("transformers", "a", marks=pytest.mark.slow),
    ],
)
def test_converted_run_is_worth_as_much_as_before(tmp_path: Path, runs: Path, to: str, out: str) -> None:
    """There and back: the same nearest neighbours, and where the classifier has a place the same accuracy."""
    assert main("convert", "--to", to, runs / "pretrain", tmp_path / out)[0] == 0
    assert main("convert", "--from", to, "--to", "mim", tmp_path / out, tmp_path / "back.pt")[0] == 0
    plain = ["--pool", "mean", "--k", 20, "TRAIN.precision", "fp32", "DATA.workers", 0]
    assert figures(tmp_path, "knn", tmp_path / "back.pt", *plain) == figures(tmp_path, "knn", runs / "pretrain", *plain)
    if to == "transformers":
        return  # its ViT has no norm behind the mean
    assert main("convert", "--to", to, runs / "finetune", tmp_path / "tuned.pth")[0] == 0
    assert main("convert", "--to", "mim", tmp_path / "tuned.pth", tmp_path / "tuned.pt")[0] == 0
    plain = ["TRAIN.precision", "fp32", "DATA.workers", 0, "EVALUATE.crop_pct", "1"]
    metrics, expected = (
        figures(tmp_path, "classify", path, *plain) for path in (tmp_path / "tuned.pt", runs / "finetune")
    )
    assert metrics["val/top1"] == expected["val/top1"]
    assert metrics["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


@pytest.mark.slow
def test_converted_official_files_are_evaluated_as_runs_are(tmp_path: Path) -> None:
    mae = write_mae(tmp_path / "mae.pth", mae_pretrained(channels=1))
    buffers = swin_buffers(swin())
    simmim = write_simmim(tmp_path / "simmim.pth", simmim_pretrained(swin(channels=1), 8, buffers))
    for source, pairs in ((mae, ["ENCODER.heads", "3", "HEAD.heads", "2"]), (simmim, [])):
        assert main("convert", "--to", "mim", source, tmp_path / "ours.pt", *pairs)[0] == 0
        metrics = figures(
            tmp_path, "knn", tmp_path / "ours.pt", "--pool", "mean", "DATA.name", "digits", "DATA.workers", 0
        )
        assert metrics["knn/top1"] > 0.3  # of ten classes: even a random encoder tells digits apart somewhat
