"""What the documents say is true: their code and commands run as they stand, and their tables list what there is."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import PROBE, RECIPE, ROOT, TINY, TINY_CLASSIFIER, call, losses
from small_data import write_digits
from warm import Warm

import mim
from mim import config, metric_keys
from mim.build.data import build_data
from mim.build.models import build_without_memory
from mim.build.tasks import build_task
from mim.config.recipes import find_file
from mim.config.schema import FAMILIES, family
from mim.engine import checkpoint
from mim.metric_keys import KNN_TOP1, VAL_TOP1, at_start, choice, of_setting


def _blocks(document: str, language: str) -> dict[str, str]:
    """Code blocks that open with a comment of a file's name, by that name."""
    text = (ROOT / document).read_text()
    return dict(re.findall(rf"```{language}\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))


def _write(folder: Path, document: str) -> None:
    for name, code in (_blocks(document, "python") | _blocks(document, "yaml")).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)


def _start(warm: Warm, folder: Path, *words: str) -> str:
    """What a command printed that ran in a folder, as a process of its own, and ended with 0."""
    if words[0] == "python":
        program, *words = words[1:]
        program = str(folder / program)
    else:
        program, *words = (words[0].removeprefix("mim-"), *words[1:])
    process = warm.start(words, folder / "log.txt", program, folder, PYTHONPATH=str(folder))
    assert process.wait(900) == 0, f"{program} {shlex.join(words)}:\n{process.text}"
    return process.text


def _summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture
def registry_copy(monkeypatch, tmp_path):
    """Lets examples of two documents take one name, and forgets them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for section in FAMILIES:
        monkeypatch.setattr(family(section), "_members", dict(family(section).members()))
    yield
    for module in [module for module in sys.modules if module.startswith("my_package")]:
        del sys.modules[module]


@pytest.mark.slow
def test_extending_examples_train_together(warm, tmp_path, registry_copy):
    _write(tmp_path, "docs/extending.md")
    _start(warm, tmp_path, "python", "make_stack.py")
    code, output = call(tmp_path / "run", {"TRAIN.epochs": 2, "EVALUATE.knn": 0}, recipe=tmp_path / "mine.yaml")
    assert code == 0, output
    rows = losses(tmp_path / "run")
    assert rows[-1] < 0.8 * rows[0]
    assert "edges + filters" in output
    assert "filters.pt" in checkpoint.load(checkpoint.find(tmp_path / "run"))["teachers"]
    assert "rows: 32 of 64 cells" in output
    assert "1,617" in output  # images of the source: nine tenths of the digits


def test_extending_source_names_the_key_of_a_missing_file(tmp_path, registry_copy):
    _write(tmp_path, "docs/extending.md")
    runpy.run_path("make_stack.py")
    code, output = call(tmp_path / "run", {"DATA.path": "missing.npy"}, recipe=tmp_path / "mine.yaml")
    assert code == 2, output
    assert "DATA.path missing.npy does not exist" in output


@pytest.mark.slow
def test_extending_metric_is_logged_at_each_evaluation(warm, tmp_path):
    _write(tmp_path, "docs/extending.md")
    _start(warm, tmp_path, "python", "make_stack.py")
    output = _start(warm, tmp_path, "python", "train_mine.py")
    rows = [json.loads(line) for line in (tmp_path / "runs" / "spread" / "metrics.jsonl").read_text().splitlines()]
    spreads = [row["val/feature_std"] for row in rows if "val/feature_std" in row]
    assert len(spreads) == 2  # before the first step and at the end
    assert min(spreads) > 0
    assert f"feature_std: {spreads[-1]}" in output


def test_extending_check_holds_for_the_examples(tmp_path, registry_copy):
    _write(tmp_path, "docs/extending.md")
    runpy.run_path("make_stack.py")
    runpy.run_path("check.py", run_name="__main__")


def test_extending_shows_one_part_of_every_family_that_it_names():
    text = (ROOT / "docs/extending.md").read_text()
    for base in re.findall(r"^\| `mim\.(\w+)` \|", text, flags=re.MULTILINE):
        if base not in ("Optimizer", "Schedule"):
            assert re.search(rf"class \w+\(mim\.{base}, name=", text), base


def test_documents_name_what_the_package_has():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for name in re.findall(r"\bmim\.([A-Z]\w+)", document.read_text()):
            assert name in mim.__all__, f"{document.name}: mim.{name}"
            assert hasattr(mim, name), name


def test_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_readme_encoder_trains_from_python(warm, tmp_path):
    _write(tmp_path, "README.md")
    output = _start(warm, tmp_path, "python", "example.py")
    assert re.search(r"EncoderSpec\(width=96, stride=4", output), output
    rows = losses(tmp_path / "runs" / "conv")
    assert rows[-1] < rows[0]


def test_weights_example_loads_a_run(tmp_path, monkeypatch, capsys):
    code, output = call(tmp_path / "runs" / "mae", TINY)
    assert code == 0, output
    _write(tmp_path, "docs/weights.md")
    monkeypatch.chdir(tmp_path)
    for program in ("weights.py", "model.py"):
        runpy.run_path(program, run_name="__main__")
    output = capsys.readouterr().out
    assert "torch.Size([2, 16])" in output
    assert "4 torch.Size([2, 16, 8, 8])" in output
    assert "attention torch.Size([2, 2, 65, 65])" in output
    assert "torch.Size([2, 1, 32, 32])" in output


@pytest.mark.slow
def test_weights_export_example_writes_programs_for_any_batch(tmp_path, monkeypatch):
    code, output = call(tmp_path / "runs" / "mae", TINY)
    assert code == 0, output
    _write(tmp_path, "docs/weights.md")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("export.py", run_name="__main__")
    img_BCHW = torch.randn(5, *names["example"].shape[1:])
    for program in (torch.jit.load("encoder.ts"), torch.export.load("encoder.pt2").module()):
        torch.testing.assert_close(program(img_BCHW), names["model"](img_BCHW), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_tutorial_commands_run_one_after_the_other(warm, tmp_path):
    _write(tmp_path, "docs/tutorial.md")
    text = (ROOT / "docs/tutorial.md").read_text()
    commands = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    assert len(commands) >= 8
    lines = [line for block in commands for line in block.splitlines()]
    smaller = " ENCODER.width 64 ENCODER.depth 4 TRAIN.epochs 20"
    lines = [f"{line}{smaller}" if line.startswith("mim-train --config quickstart/") else line for line in lines]
    output = [_start(warm, tmp_path, *shlex.split(line)) for line in lines]
    for name in re.findall(r"^(runs/digits/\S+)  ", text, flags=re.MULTILINE):
        assert (tmp_path / name).exists(), name
    assert (tmp_path / "masks.png").exists()
    assert (tmp_path / "predicted.png").exists()
    runs = ("digits", "digits_probe", "random_probe")
    pretrained, probe, random_probe = (_summary(tmp_path / "runs" / name) for name in runs)
    gains = (pretrained[KNN_TOP1] - pretrained[at_start(KNN_TOP1)], probe[VAL_TOP1] - random_probe[VAL_TOP1])
    assert min(gains) > 0.02, gains  # measured with three seeds: at least 0.1
    knn_table = next(text for text in output if re.search(r"^ k  ", text, flags=re.MULTILINE))
    assert f"{pretrained[KNN_TOP1]:.4f}" in knn_table


@pytest.mark.slow
def test_own_backbone_commands_fit_their_models():
    text = (ROOT / "docs/own-backbone.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("mim-train --config backbones/any")]
    made = []
    for words in commands:
        pairs = words[words.index("--output") + 2 :]
        keys = dict(zip(pairs[::2], map(yaml.safe_load, pairs[1::2]), strict=True))
        model = build_without_memory(mim.load_config("backbones/any", keys))
        made.append((keys["ENCODER.model"], model.encoder.hidden, model.head.name))
    assert made == [
        ("resnet26", "replace", "pixel_shuffle"),
        ("resnet26", "sparse", "unet"),
        ("vit_small_patch16_dinov3", "drop", "transformer"),
    ]


def test_targets_page_names_recipes_of_its_targets():
    text = (ROOT / "docs/targets.md").read_text()
    named = re.findall(r"`((?:targets|cifar10|digits|mae|simmim|quickstart)/\w+)`", text)
    assert {f"targets/{path.stem}" for path in (ROOT / "configs/targets").glob("*.yaml")} <= set(named)
    for row in re.findall(r"^\| .*", text, flags=re.MULTILINE)[1:]:
        targets, recipes = row.split(" | ")[1:3]
        for name in re.findall(r"`(\w+/\w+)`", recipes):
            parts = [part.name for part in config.load_config(find_file(name)).parts("TARGET")]
            assert set(parts) <= set(re.findall(r"`(\w+)`", targets)), name


@pytest.mark.slow
def test_targets_page_commands_build_their_targets():
    text, made = (ROOT / "docs/targets.md").read_text(), []
    for words in (shlex.split(line) for line in text.splitlines() if line.startswith("mim-train ")):
        pairs = words[5:]
        keys = dict(zip(pairs[::2], map(yaml.safe_load, pairs[1::2]), strict=True))
        keys |= {"TARGET.checkpoint": ""} if "TARGET.checkpoint" in keys else {}  # on the meta device it may be
        keys |= {"TARGET.model": ""} if keys.get("TARGET.model", "") is None else {}
        made.append(build_without_memory(mim.load_config(words[2], keys)).target.title)
    named = ["pixels", *["teacher"] * 4, "pixels + fourier", "pixels + hog", "follower"]
    assert [title[: len(name)] for title, name in zip(made, named, strict=True)] == named


@pytest.mark.slow
def test_labels_page_commands_make_a_task_of_labels_of_every_kind(tmp_path):
    (table,) = re.findall(r"```\n(path,.*?)```", (ROOT / "docs/labels.md").read_text(), flags=re.DOTALL)
    paths = write_digits(tmp_path / "cells" / "images", 4)
    rows = [
        f"images/{path.name},{number / 4},{'mono' if number % 2 else 'poly'},m01" for number, path in enumerate(paths)
    ]
    finds = ["1,0", "0,0", "0,1", "1,1"]
    lines = [",".join(pair) for pair in zip([table.splitlines()[0], *rows], ["crack,dirt", *finds], strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    for path in write_digits(tmp_path / "images", 4):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32), 2, np.uint8)).save(tmp_path / "masks" / path.name)
    made = []
    for line in (ROOT / "docs/labels.md").read_text().splitlines():
        if line.startswith("mim-train "):
            words = shlex.split(line.replace("/data/", f"{tmp_path}/"))
            cfg = mim.load_config(words[2], [*words[5:], "DATA.val_share", "0.3", "ENCODER.depth", "2"])
            spec = build_task(cfg, *build_data(cfg), weights=False).label_spec
            made.append((spec.kind, spec.names))
    assert made == [
        ("class", ("mono", "poly")),
        ("number", ("probability",)),
        ("class", ("<0.5", ">=0.5")),
        ("classes", ("crack", "dirt")),
        ("mask", ("background", "crack", "contact")),
    ]


def test_run_folder_page_explains_every_key(tmp_path):
    text = (ROOT / "docs/run-folder.md").read_text()
    summaries = [
        mim.train(RECIPE, {**TINY, "EVALUATE.at_start": True}, tmp_path / "mae", quiet=True),
        mim.train(
            PROBE, {**TINY_CLASSIFIER, "TRAIN.epochs": 1, "SCHEDULE.warmup_epochs": 0}, tmp_path / "probe", quiet=True
        ),
    ]
    rates = summaries[1].keys() & {
        of_setting(key, f"rate {rate:g}") for key in (VAL_TOP1, choice(VAL_TOP1)) for rate in (1.0, 3.0, 10.0, 30.0)
    }
    keys = {value for name, value in vars(metric_keys).items() if name.isupper()}
    intervals = {key for key in keys.union(*summaries) if key.endswith("_interval")}
    assert "`val/top1_interval`" in text
    for key in sorted(keys.union(*summaries) - rates - intervals):
        assert f"`{key}`" in text, key
    assert len(rates) == 8
    assert "`val/top1_SETTING`, `choice/top1_SETTING`" in text


def test_commands_table_lists_every_command_and_part():
    text = (ROOT / "docs/commands.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z][\w.]+)` \| (.+?) \|", text, flags=re.MULTILINE))
    for section in FAMILIES:
        names = {name for name, part in family(section).members().items() if part.__module__.startswith("mim.")}
        assert set(re.findall(r"`(\w+)`", rows[section])) == names, section
    commands = {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert set(re.findall(r"^\| `mim-(\w+)` \|", text, flags=re.MULTILINE)) == commands


def test_site_names_every_page():
    config = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    pages = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))", yaml.dump(yaml.safe_load(config)["nav"])))
    files = {
        path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".md", ".ipynb")
    }
    assert pages == files


def test_documents_link_to_files_that_exist():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
