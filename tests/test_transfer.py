"""Transfer studies: what they train, where it goes, what they say, and that the shipped ones hold together."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from processes import ROOT, tool

from mim import load_config
from mim.transfer import in_words, read_study

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
SMALL = {  # for every run of a study
    "DATA.name": "digits",
    "DATA.path": "",
    "DATA.image_size": "[16, 16]",
    "DATA.batch_size": 20,
    "DATA.workers": 0,
    "ENCODER.patch": 4,
    "ENCODER.width": 16,
    "ENCODER.depth": 2,
    "ENCODER.heads": 2,
    "HEAD.width": 16,
    "HEAD.depth": 1,
    "HEAD.heads": 2,
    "MASKER.cell": 4,
    "LABELS.share": 1.0,
    "LABELS.per_class": 4,
    "TRAIN.epochs": 1,
    "TRAIN.batch": 20,
    "TRAIN.compile": False,
    "SCHEDULE.warmup_epochs": 0,
    "EVALUATE.samples": 60,
    "LOG.tensorboard": False,
}


def call(*words) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("transfer").main([str(word) for word in words])
    return code, text.getvalue()


def pairs(keys: dict) -> list[str]:
    return [str(word) for pair in keys.items() for word in pair]


def write_study(folder: Path, text: str) -> Path:
    for recipe in ("quickstart/mae_digits", "finetune/digits", "probe/digits"):
        text = text.replace(f"{recipe}.yaml", str(ROOT / "configs" / f"{recipe}.yaml"))
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


STUDY = """\
STARTS:
  MAE: {config: quickstart/mae_digits.yaml, set: {HEAD.width: 16, HEAD.depth: 1, HEAD.heads: 2}}
  scratch: {then: {OPTIMIZER.layer_decay: 0.9}}
PROTOCOLS:
  linear probe: {config: probe/digits.yaml}
  "fine-tuning, last block": {config: finetune/digits.yaml, set: {FREEZE.tune_blocks: 1}}
SEEDS: [0, 1]
"""
KEYS = pairs({key: value for key, value in SMALL.items() if not key.startswith("HEAD.")})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder, STUDY)
    code, text = call(study, "--output", folder / "out", *KEYS)
    assert code == 0, text
    return study, folder / "out", text


def test_study_trains_every_start_under_every_protocol_and_seed(finished):
    _, output, text = finished
    runs = {str(path.parent.relative_to(output)) for path in output.rglob("summary.json")}
    protocols = ("linear-probe", "fine-tuning-last-block")
    assert runs == {
        *(f"pretraining/mae-seed{seed}" for seed in (0, 1)),
        *(f"{name}/{start}-seed{seed}" for name in protocols for start in ("mae", "scratch") for seed in (0, 1)),
    }
    assert "[10/10]" in text


def test_study_starts_from_the_pretraining_of_the_same_seed(finished):
    _, output, _ = finished
    for seed in (0, 1):
        log = (output / "linear-probe" / f"mae-seed{seed}" / "log.txt").read_text()
        assert f"pretraining/mae-seed{seed}/checkpoints" in log
        assert "encoder weights loaded" in log
        assert "weights loaded" not in (output / "linear-probe" / f"scratch-seed{seed}" / "log.txt").read_text()


def test_study_then_changes_the_protocols_of_that_start_alone(finished):
    _, output, _ = finished
    for protocol, decays in (("linear-probe", (1.0, 0.9)), ("fine-tuning-last-block", (0.75, 0.9))):
        for start, decay in zip(("mae", "scratch"), decays, strict=True):
            cfg = load_config(output / protocol / f"{start}-seed0" / "config.yaml")
            assert cfg.OPTIMIZER.layer_decay == decay
    assert load_config(output / "pretraining" / "mae-seed0" / "config.yaml").OPTIMIZER.layer_decay == 1


def test_study_results_are_those_of_the_runs(finished):
    _, output, text = finished
    found = json.loads((output / "results.json").read_text())["val/top1"]
    for protocol, slug in (("linear probe", "linear-probe"), ("fine-tuning, last block", "fine-tuning-last-block")):
        for start in ("MAE", "scratch"):
            of_runs = [
                json.loads((output / slug / f"{start.lower()}-seed{seed}" / "summary.json").read_text())["val/top1"]
                for seed in (0, 1)
            ]
            assert found[protocol][start] == of_runs
            assert in_words(of_runs) in text
            assert in_words(of_runs) in (output / "results.md").read_text()


def test_study_that_is_finished_trains_nothing_again(finished):
    study, output, text = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")}
    code, again = call(study, "--output", output, *KEYS)
    assert code == 0, again
    assert {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")} == before
    assert again.splitlines()[-6:] == text.splitlines()[-6:]


def test_study_is_silent_but_for_a_line_a_run_and_the_tables(finished):
    assert "loss" not in finished[2]
    assert len(finished[2].splitlines()) < 30


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_runs_at_tiny_size(study, tmp_path):
    keys = {**SMALL, "DATA.channels": 1 if study.stem == "digits" else 3}
    for key in ("HEAD.width", "HEAD.depth", "HEAD.heads"):  # SimMIM's head is one linear map
        del keys[key]
    keys["MASKER.cell"] = 8
    code, text = call(study, "--output", tmp_path, *pairs(keys))
    assert code == 0, text
    parts = read_study(study)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["val/top1"]) == set(parts.protocols)
    assert all(set(row) == set(parts.starts) for row in found["val/top1"].values())
    assert "scratch" in parts.starts


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_says_how_it_was_run(study):
    text = study.read_text()
    for word in ("command:", "hardware:", "time:", "result:"):
        assert f"# {word}" in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1, 2]", "mapping"),
        ("STARTS: {a: {}}\n", "PROTOCOLS"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {}}\n", "PROTOCOLS.p has no config"),
        ("STARTS: {a: {file: x}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "STARTS.a"),
        ("STARTS: {a: {set: {SEED: 1}}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "use then"),
        ("START: {}\n", "did you mean 'STARTS'"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\nSEEDS: [x]\n", "SEEDS"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: none.yaml}}\n", "none.yaml"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml, set: {TRAIN.epoch: 1}}}\n", "TRAIN.epoch"),
        ("STARTS: {a: [}\n", "not YAML"),
        ("STARTS: {a: {}, a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "'a' stands twice"),
        ("STARTS: {a b: {}, A-B: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "another run has the folder"),
        (
            "STARTS: {a: {config: quickstart/mae_digits.yaml}}\n"
            "PROTOCOLS: {Pretraining: {config: finetune/digits.yaml}}\n",
            "another run has the folder",
        ),
    ],
)
def test_study_mistakes_are_named(text, named, tmp_path):
    code, said = call(write_study(tmp_path, text), "--output", tmp_path / "out")
    assert code == 2
    assert named in said


def test_study_override_of_no_run_is_an_error(tmp_path):
    study = write_study(tmp_path, "STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n")
    code, said = call(study, "--output", tmp_path / "out", "MASKER.ratio", 0.5)
    assert code == 2
    assert "MASKER.ratio" in said
    assert not (tmp_path / "out").exists()
