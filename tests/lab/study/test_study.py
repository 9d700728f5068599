"""Studies: what they train, where it goes, what they say, and that the shipped ones hold together."""

import contextlib
import dataclasses
import io
import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import DIGITS, ROOT, start, tool
from scipy import stats
from sklearn import datasets
from small_data import digit

from mim import build_model, load_config
from mim.config import parse_config
from mim.engine import checkpoint
from mim.lab.study import Results, read_study, run_study
from mim.lab.study.file import short_names
from mim.lab.study.processes import JobResult, visible_gpus
from mim.lab.study.results import markdown

STUDIES = sorted((ROOT / "configs" / "studies").glob("*/*.yaml"))
TRANSFERS = [study for study in STUDIES if study.stem.startswith("transfer")]
SMALL = {  # for every run of a study
    "DATA.name": "digits",
    "DATA.path": "",
    "DATA.image_size": "[16, 16]",
    "DATA.channels": 1,
    **DIGITS,
    "DATA.batch_size": 40,
    "DATA.workers": 0,
    "ENCODER.patch": 4,
    "ENCODER.width": 16,
    "ENCODER.depth": 2,
    "ENCODER.heads": 2,
    "LABELS.share": 1.0,
    "LABELS.per_class": 5,  # 45 of the 50 train a probe, the others choose among its settings
    "TRAIN.epochs": 1,
    "TRAIN.batch": 40,
    "TRAIN.compile": False,
    "SCHEDULE.warmup_epochs": 0,
    "EVALUATE.samples": 60,
    "LOG.tensorboard": False,
}
HEAD = {"HEAD.width": 16, "HEAD.depth": 1, "HEAD.heads": 2}
RECIPES = ("quickstart/mae_digits", "quickstart/simmim_digits", "finetune/digits", "probe/digits")


def call(*words) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("sweep").main([str(word) for word in words])
    return code, text.getvalue()


def pairs(keys: dict) -> list[str]:
    return [str(word) for pair in keys.items() for word in pair]


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def write_study(folder: Path, text: str) -> Path:
    for recipe in RECIPES:
        text = text.replace(f"{recipe}.yaml", str(ROOT / "configs" / f"{recipe}.yaml"))
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def run_with_lines(study, output, *, jobs=1, keys=SMALL) -> tuple[Results, list[str]]:
    lines: list[str] = []
    if not study.protocols:
        keys = {key: value for key, value in keys.items() if not key.startswith("LABELS.")}
    return run_study(study, output, pairs(keys), jobs, lines.append), lines


TRANSFER = """\
STARTS:
  MAE: {config: quickstart/mae_digits.yaml, set: {HEAD.width: 16, HEAD.depth: 1, HEAD.heads: 2, EVALUATE.knn_bank: 60}}
  scratch: {then: {OPTIMIZER.layer_decay: 0.9}}
PROTOCOLS:
  linear probe: {config: probe/digits.yaml}
  "fine-tuning, last block": {config: finetune/digits.yaml, set: {FREEZE.tune_blocks: 1}}
SEEDS: [0, 1]
"""
SWEEP = """\
STARTS:
  SimMIM: {config: quickstart/simmim_digits.yaml, set: {EVALUATE.reconstructions: 0, EVALUATE.knn_bank: 60}}
GRID:
  MASKER.ratio: [0.3, 0.8]
  MASKER.cell: [4, 8]
SEEDS: [1]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = write_study(folder, TRANSFER)
    code, text = call(study, "--output", folder / "out", *pairs(SMALL))
    assert code == 0, text
    return study, folder / "out", text


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two at a time."""
    folder = tmp_path_factory.mktemp("sweep")
    study = read_study(write_study(folder, SWEEP))
    results, lines = run_with_lines(study, folder / "out", jobs=2)
    results.write(folder / "out")
    return results, folder / "out", lines


# -------------------------------------------------------------------- starts x protocols


@pytest.mark.slow
def test_study_trains_every_start_under_every_protocol_and_seed(finished):
    _, output, text = finished
    runs = {str(path.parent.relative_to(output)) for path in output.rglob("summary.json")}
    protocols = ("linear-probe", "fine-tuning-last-block")
    assert runs == {
        *(f"pretraining/mae-seed{seed}" for seed in (0, 1)),
        *(f"{name}/{start}-seed{seed}" for name in protocols for start in ("mae", "scratch") for seed in (0, 1)),
    }
    assert "[10/10]" in text


@pytest.mark.slow
def test_study_starts_from_the_pretraining_of_the_same_seed(finished):
    _, output, _ = finished
    for seed in (0, 1):
        run = json.loads((output / "pretraining" / f"mae-seed{seed}" / "environment.json").read_text())["run"]
        log = (output / "linear-probe" / f"mae-seed{seed}" / "log.txt").read_text()
        assert f"pretraining/mae-seed{seed}/checkpoints" in log
        assert "encoder weights loaded" in log
        environment = json.loads((output / "linear-probe" / f"mae-seed{seed}" / "environment.json").read_text())
        assert environment["from"]["run"] == run
        assert "weights loaded" not in (output / "linear-probe" / f"scratch-seed{seed}" / "log.txt").read_text()


@pytest.mark.slow
def test_study_then_changes_the_protocols_of_that_start_alone(finished):
    _, output, _ = finished
    for protocol, decays in (("linear-probe", (1.0, 0.9)), ("fine-tuning-last-block", (0.75, 0.9))):
        for name, decay in zip(("mae", "scratch"), decays, strict=True):
            cfg = load_config(output / protocol / f"{name}-seed0" / "config.yaml")
            assert cfg.OPTIMIZER.layer_decay == decay
    assert load_config(output / "pretraining" / "mae-seed0" / "config.yaml").OPTIMIZER.layer_decay == 1


@pytest.mark.slow
def test_study_figures_are_mean_and_interval_of_the_runs(finished):
    _, output, text = finished
    content = json.loads((output / "results.json").read_text())["trials"]
    for protocol, slug in (("linear probe", "linear-probe"), ("fine-tuning, last block", "fine-tuning-last-block")):
        for name in ("MAE", "scratch"):
            of_runs = [
                json.loads((output / slug / f"{name.lower()}-seed{seed}" / "summary.json").read_text())["val/top1"]
                for seed in (0, 1)
            ]
            assert content[name]["val/top1"][protocol] == {"0": of_runs[0], "1": of_runs[1]}
            percent = 100 * np.array(of_runs)
            half = stats.t.ppf(0.975, 1) * stats.sem(percent)
            low, high = percent.mean() - half, percent.mean() + half
            cut = low < 0 or high > 100
            interval = f"[{max(low, 0):.1f}, {min(high, 100):.1f}]" if cut else f"± {half:.1f}"
            words = f"{percent.mean():.1f} {interval}"
            assert words in text
            assert words in (output / "results.md").read_text()


@pytest.mark.slow
def test_study_that_is_finished_trains_nothing_again(finished):
    study, output, text = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")}
    code, output_again = call(study, "--output", output, *pairs(SMALL))
    assert code == 0, output_again
    assert {path: path.stat().st_mtime_ns for path in output.rglob("checkpoints/*")} == before
    table = text[text.index("After the last epoch") : text.index("Tables and")]
    assert table in output_again


@pytest.mark.slow
def test_study_says_a_line_a_run_the_table_and_the_page(finished):
    _, output, text = finished
    assert "loss" not in text[: text.index("After the last epoch")]
    assert re.search("95% .*2 seeds", text)
    assert (output / "comparison" / "comparison.html").stat().st_size > 10_000
    assert str(output / "comparison" / "comparison.html") in text.replace("\n", "")


# -------------------------------------------------------------------- what is varied


@pytest.mark.slow
def test_grid_tries_every_combination_that_can_be_and_names_the_others(swept):
    results, output, lines = swept
    assert [trial.name for trial in results.trials] == [
        *("ratio 0.3, cell 4", "ratio 0.3, cell 8", "ratio 0.8, cell 4"),
    ]
    assert [line for line in lines if "left out" in line] == [lines[0]]
    assert "ratio 0.8, cell 8" in lines[0]  # all of 4 cells
    assert "leaves 0 visible" in lines[0]
    for trial in results.trials:
        cfg = load_config(
            output / "pretraining" / f"{trial.name.replace(', ', '-').replace(' ', '-')}-seed1" / "config.yaml"
        )
        assert (f"{cfg.MASKER.ratio}", f"{cfg.MASKER.cell}") == tuple(trial.point.values())
        assert cfg.SEED == 1


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_one_by_one(swept, tmp_path):
    """Apart from time: to the bit, with equal threads."""
    results, _, _ = swept
    study = dataclasses.replace(results.study, trials=results.study.trials[2:3], seeds=(1,))
    alone, _ = run_with_lines(study, tmp_path, jobs=2)
    for figure in ("train/loss", "val/loss", "knn/top1"):
        name = results.study.trials[2].name
        assert alone.values(name, "", figure)[1] == results.values(name, "", figure)[1]


@pytest.mark.slow
def test_sweep_tells_the_hidden_share_and_avg_dist_of_each_mask(swept):
    results, _, _ = swept
    head, *rows = results.table()
    assert head == ["", "kNN, %", "hidden, %", "AvgDist, px"]
    shares = {row[0]: row[2] for row in rows}
    assert shares == {
        "ratio 0.3, cell 4": "31.2",
        "ratio 0.3, cell 8": "50.0",
        "ratio 0.8, cell 4": "81.2",
    }
    distances = {row[0]: float(row[3]) for row in rows}
    assert distances["ratio 0.3, cell 4"] < distances["ratio 0.8, cell 4"]
    assert distances["ratio 0.3, cell 8"] > distances["ratio 0.3, cell 4"]


@pytest.mark.slow
def test_sweep_draws_a_heat_map_where_two_keys_vary(swept):
    _, output, _ = swept
    for name in ("heat_map", "over_avg_dist"):
        picture = np.asarray(Image.open(output / f"{name}.png"))
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 10
    assert not (output / "points.png").exists()


def test_list_sets_each_point_on_every_start_that_is_trained(tmp_path):
    text = (
        "STARTS: {a: {config: quickstart/mae_digits.yaml}, b: {config: quickstart/simmim_digits.yaml}, scratch: {}}\n"
        "LIST: {low: {MASKER.ratio: 0.5}, 'high, all': {MASKER.ratio: 0.75, LOSS.over: all}}\n"
        "PROTOCOLS: {probe: {config: probe/digits.yaml}}\n"
    )
    study = read_study(write_study(tmp_path, text))
    assert [trial.name for trial in study.trials] == ["a, low", "a, high, all", "b, low", "b, high, all", "scratch"]
    assert study.trials[3].point == {"MASKER.ratio": "0.75", "LOSS.over": "all"}
    assert study.starts == ("a", "b", "scratch")


def test_texts_with_brackets_reach_a_run_in_their_list(tmp_path):
    options = ["layers=[1, 1, 1, 1]", "output_stride=8", "stem_type=''"]
    point = f"{{ENCODER.options: {json.dumps(options)}}}"
    text = f"STARTS: {{a: {{config: quickstart/mae_digits.yaml}}}}\nLIST: {{b: {point}}}\n"
    (trial,) = read_study(write_study(tmp_path, text)).trials
    assert list(load_config("backbones/any", trial.point).ENCODER.options) == options


def test_seed_as_a_value_is_the_seed_of_each_run(tmp_path):
    keys = "{config: probe/digits.yaml, set: {LABELS.share: 0.1, LABELS.seed: SEED}}"
    study = read_study(
        write_study(tmp_path, f"STARTS: {{scratch: {{}}}}\nPROTOCOLS: {{probe: {keys}}}\nSEEDS: [0, 5]\n")
    )
    configs = [study.protocols["probe"].load(seed, {}, {}) for seed in study.seeds]
    assert [(cfg.SEED, cfg.LABELS.seed) for cfg in configs] == [(0, 0), (5, 5)]


def test_points_may_give_several_targets(tmp_path):
    targets = '[{name: pixels, normalize: patch}, {name: hog, weight: 0.5, "bins": 4}]'
    both = "[{name: pixels, normalize: patch}, {name: hog, weight: 0.5, bins: 4}]"
    start = "STARTS: {a: {config: quickstart/mae_digits.yaml}}\n"
    study = read_study(
        write_study(tmp_path, f"{start}LIST: {{two: {{TARGET: {targets}}}, one: {{TARGET.weight: 2}}}}\n")
    )
    assert study.trials[0].point == {"TARGET": both}
    two, one = (parse_config("{}", trial.point).parts("TARGET") for trial in study.trials)
    assert [(part.name, part.weight) for part in (*two, *one)] == [("pixels", 1), ("hog", 0.5), ("pixels", 2)]
    assert two[1].bins == 4
    study = read_study(write_study(tmp_path, f"{start}GRID: {{TARGET: [{{name: hog}}, {targets}]}}\n"))
    assert study.grid == {"TARGET": ("{name: hog}", both)}


def test_protocols_take_the_encoder_of_their_start_without_a_word_of_it(tmp_path, monkeypatch):
    """Before anything is trained; what a protocol sets otherwise is told at once."""
    chains = []
    monkeypatch.setattr("mim.lab.study.runner.run_chains", lambda each, *_: chains.extend(each))
    text = """\
STARTS:
  MAE: {config: quickstart/mae_digits.yaml, set: {HEAD.width: 16, HEAD.depth: 1, HEAD.heads: 2}}
GRID: {ENCODER.width: [16, 32]}
PROTOCOLS: {linear probe: {config: probe/digits.yaml}}
"""
    study = read_study(write_study(tmp_path, text))
    run_study(study, tmp_path, [], 1, print)
    starts, probes = ([chain[place].config.args[0].cfg for chain in chains] for place in (0, 1))
    assert [cfg.ENCODER.width for cfg in probes] == [cfg.ENCODER.width for cfg in starts] == [16, 32]
    with pytest.raises(ValueError, match=r"ENCODER\.width: 16 here, 32 there"):
        study.protocols["linear probe"].load(0, {"ENCODER.width": "16"}, {}, starts[1])


def test_short_names_keep_what_tells_keys_apart():
    assert short_names(("MASKER.ratio", "MASKER.cell")) == {"MASKER.ratio": "ratio", "MASKER.cell": "cell"}
    assert short_names(("HEAD.width", "ENCODER.width")) == {
        "HEAD.width": "HEAD.width",
        "ENCODER.width": "ENCODER.width",
    }


def test_markdown_table_survives_a_bar_in_a_name():
    lines = markdown([["", "a|b"], ["c", "1"]]).splitlines()
    assert all(line.count("|") == 3 for line in lines)


# -------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
def test_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    """A rate at which the loss is not finite."""
    text = (
        "STARTS: {SimMIM: {config: quickstart/simmim_digits.yaml}}\n"
        "LIST: {wild: {OPTIMIZER.base_lr: 1.0e+38}, calm: {}}\n"
        "PROTOCOLS: {probe: {config: probe/digits.yaml}}\n"
    )
    code, text = call(write_study(tmp_path, text), "--output", tmp_path / "out", *pairs(SMALL))
    assert code == 1, text
    failures = [line for line in text.splitlines() if "FAILED" in line]
    assert any("FAILED pretraining, wild, seed 0" in line for line in failures)
    assert any(re.search("FAILED probe, wild, seed 0.*pretraining, wild, seed 0", line) for line in failures)
    assert "[4/4]" in text
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(content["trials"]) == {"calm"}
    assert set(content["failed"]) == {"pretraining, wild, seed 0", "probe, wild, seed 0"}


def test_run_that_was_extended_does_not_stand_for_that_of_the_study(tmp_path, monkeypatch):
    def give(chains, _, add):
        for job in [job for chain in chains for job in chain]:
            add(JobResult(job, {"epochs": 6 if "seed 1" in job.name else 4, "seconds": 1.0}))

    monkeypatch.setattr("mim.lab.study.runner.run_chains", give)
    text = "STARTS: {MAE: {config: quickstart/mae_digits.yaml, set: {TRAIN.epochs: 4}}}\nSEEDS: [0, 1]\n"
    text += "GRID: {MASKER.ratio: [0.5]}\n"
    lines = []
    results = run_study(read_study(write_study(tmp_path, text)), tmp_path, [], 1, lines.append)
    assert [name[2] for name in results.summaries] == [0]
    (reason,) = results.failed.values()
    assert "extended to 6 epochs" in reason
    assert "the study has 4" in reason
    assert lines[1].startswith("[2/2] FAILED")


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_study_goes_on_where_it_was_and_leaves_no_process(by, tmp_path):
    study = write_study(tmp_path, SWEEP.replace("[0.3, 0.8]", "[0.3, 0.6]"))
    words = [str(ROOT / "tools" / "sweep.py"), str(study), "--output", str(tmp_path / "out"), "--no-page"]
    keys = pairs({key: value for key, value in SMALL.items() if "LABELS" not in key} | {"TRAIN.epochs": 3})
    process = start([sys.executable, *words, *keys])
    assert process.stdout is not None
    while "[1/4]" not in process.stdout.readline():
        assert process.poll() is None
    workers = _descendants(process.pid)
    assert len(workers) >= 2  # the server that forks, and a run
    process.send_signal(by)
    process.communicate(timeout=60)
    done = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert 1 <= len(done) < 4
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, text = call(*words[1:], *keys)
    assert code == 0, text
    times = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert len(times) == 4
    assert all(times[name] == at for name, at in done.items())


def _descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for path in tasks for child in path.read_text().split()]
    return [*children, *(each for child in children for each in _descendants(child))]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1, 2]", "mapping"),
        ("STARTS: {a: {}}\n", "PROTOCOLS"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {}}\n", "PROTOCOLS.p has no config"),
        ("STARTS: {a: {file: x}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "STARTS.a"),
        ("STARTS: {a: {set: {SEED: 1}}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "use then"),
        ("START: {}\n", "did you mean 'STARTS'"),
        ("TITLE: [a]\nSTARTS: {a: {config: quickstart/mae_digits.yaml}}\n", "TITLE is ['a']"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\nSEEDS: [x]\n", "SEEDS"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\nSEEDS: [1, 1]\n", "twice"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: none.yaml}}\n", "none.yaml"),
        ("STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml, set: {TRAIN.epoch: 1}}}\n", "TRAIN.epoch"),
        ("STARTS: {a: [}\n", "not YAML"),
        ("STARTS: {a: {}, a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "'a' appears twice"),
        ("STARTS: {a b: {}, A-B: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n", "another run has the folder"),
        (
            "STARTS: {a: {config: quickstart/mae_digits.yaml}}\n"
            "PROTOCOLS: {Pretraining: {config: finetune/digits.yaml}}\n",
            "another run has the folder",
        ),
        (
            "STARTS: {a: {config: quickstart/mae_digits.yaml}}\nGRID: {MASKER.ratio: 0.5}\n",
            "GRID.MASKER.ratio is '0.5'",
        ),
        ("STARTS: {a: {config: quickstart/mae_digits.yaml}}\nGRID: {MASKER.ratio: [0.5, 0.5]}\n", "stands twice"),
        ("STARTS: {a: {config: quickstart/mae_digits.yaml}}\nGRID: {MASKER.ration: [0.5]}\n", "did you mean 'ratio'"),
        ("STARTS: {a: {config: quickstart/mae_digits.yaml}}\nLIST: {b: {LOSS.over: none}}\n", "LOSS.over is 'none'"),
        ("STARTS: {a: {config: quickstart/mae_digits.yaml}}\nLIST: [b]\n", "LIST is ['b']"),
        (
            "STARTS: {a: {config: quickstart/mae_digits.yaml}}\nLIST: {b: {}}\nGRID: {MASKER.ratio: [0.5]}\n",
            "one of them",
        ),
    ],
)
def test_study_mistakes_are_named(text, named, tmp_path):
    code, output = call(write_study(tmp_path, text), "--output", tmp_path / "out")
    assert code == 2
    assert named in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "named"), [(["MASKER.ratio", "0.5"], "MASKER.ratio"), (["--jobs", "0"], "--jobs is 0")]
)
def test_study_flags_that_cannot_be_are_an_error(flags, named, tmp_path):
    study = write_study(tmp_path, "STARTS: {a: {}}\nPROTOCOLS: {p: {config: finetune/digits.yaml}}\n")
    code, output = call(study, "--output", tmp_path / "out", *flags)
    assert code == 2
    assert named in output
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------- the shipped ones


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """120 digits of ten classes in a folder, in place of 1,797: what is asked here is whether the parts fit."""
    folder = tmp_path_factory.mktemp("few")
    for number, label in enumerate(datasets.load_digits().target[:120]):
        (folder / str(label)).mkdir(exist_ok=True)
        digit(number).save(folder / str(label) / f"{number}.png")
    held_out = {"DATA.val_path": "", "DATA.val_share": 0.3}
    return {"DATA.name": "folder", "DATA.path": str(folder), "DATA.labels": "folders", **held_out}


TINY_SWEEP = SMALL | {"ENCODER.patch": 2, "DATA.image_size": "[16, 16]"}
TINY_TRANSFER = SMALL | {"MASKER.cell": 8}
TINY_BACKBONES = {key: value for key, value in SMALL.items() if not key.startswith("ENCODER.")}  # timm's own are tiny
TINY_BACKBONES |= {"DATA.image_size": "[32, 32]"}
TINY_SOLAR = SMALL | {"DATA.image_size": "[32, 32]", "ENCODER.patch": 16, "MASKER.cell": 16, "DATA.batch_size": 10}
TINY_SOLAR |= {"LABELS.file": "", "LABELS.columns": "[]", "LABELS.group": "", "LABELS.per_class": 0, "LABELS.count": 20}
TINY_SOLAR["TRAIN.batch"] = 10


def tiny_keys(file: Path) -> dict:
    """What makes the runs of a shipped study small."""
    if file not in TRANSFERS:
        return TINY_SWEEP
    if file.parent.name == "solar":
        return TINY_SOLAR
    return TINY_BACKBONES if file.stem.endswith("backbones") else TINY_TRANSFER


def first_points(study):
    """The first two points of a sweep, one seed."""
    return dataclasses.replace(study, trials=study.trials[:2], seeds=(0,), protocols={})


LONG = ("digits/transfer_backbones", "digits/readouts", "solar/transfer")  # the others have parts of each kind
VARYING = [
    pytest.param(file, marks=pytest.mark.slow) if str(file.with_suffix("")).endswith(LONG) else file for file in STUDIES
]


@pytest.mark.parametrize("file", VARYING, ids=named)
def test_shipped_study_varies_what_its_title_says(file, tmp_path, monkeypatch):
    """Its runs have configs that can be built, and its first points one of their own; nothing is trained."""
    monkeypatch.setattr("mim.lab.study.runner.run_chains", lambda *_: None)
    study = read_study(file)
    assert len(study.trials) >= 2
    if file in TRANSFERS:
        results, lines = run_with_lines(study, tmp_path, keys=tiny_keys(file))
    else:
        assert len(study.seeds) >= 3
        study = first_points(study)
        results, lines = run_with_lines(study, tmp_path, keys=tiny_keys(file))
        first, second = (str(results.configs[trial.name]) for trial in study.trials)
        assert first != second
    assert lines == []
    assert set(results.configs) == {trial.name for trial in study.trials}


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=named)
def test_shipped_study_runs_at_tiny_size(file, few_digits, tmp_path):
    """One seed; of a sweep the first two points."""
    study = read_study(file)
    study = dataclasses.replace(study, seeds=study.seeds[:1]) if file in TRANSFERS else first_points(study)
    results, lines = run_with_lines(study, tmp_path, jobs=2, keys=tiny_keys(file) | few_digits)
    assert not results.failed, lines
    if study.protocols:
        assert any(trial.name.endswith("scratch") for trial in results.trials)
    for trial in results.trials:
        assert all(len(results.values(trial.name, protocol, "val/top1")) == 1 for protocol in study.protocols)


@pytest.mark.slow
@pytest.mark.parametrize("file", [path for path in STUDIES if path not in TRANSFERS], ids=named)
def test_shipped_sweep_has_another_config_at_every_point(file, tmp_path, monkeypatch):
    """At full size; a point that cannot be is named."""
    monkeypatch.setattr("mim.lab.study.runner.run_chains", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    if "runs/teacher" in file.read_text():  # which the command of the study makes first
        cfg = load_config("quickstart/mae_digits")
        content = {"step": 1, "model": build_model(cfg).state_dict(), "ema": {}, "config": cfg.to_yaml()}
        (tmp_path / "runs").mkdir()
        checkpoint.write(tmp_path / "runs" / "teacher", content)
    study = dataclasses.replace(read_study(file), seeds=(0,))
    results, lines = run_with_lines(study, tmp_path, keys={})
    assert all(line.startswith("left out: ") for line in lines)
    assert len({str(cfg) for cfg in results.configs.values()}) == len(study.trials) - len(lines) >= 2


@pytest.mark.parametrize("study", STUDIES, ids=named)
def test_shipped_study_says_how_it_was_run(study):
    text = study.read_text()
    for word in ("command:", "source:", "hardware:", "time:", "result:"):
        assert f"# {word}" in text
    assert f"studies/{study.parent.name}/{study.name}" in text


@pytest.mark.parametrize(
    ("count", "names", "expected"),
    [
        (2, "", ["0", "1"]),
        (2, "2,3", ["2", "3"]),
        (2, "GPU-a, GPU-b", ["GPU-a", "GPU-b"]),
        (0, "", []),
        (1, "5,-1", ["5"]),
    ],
)
def test_runs_of_a_study_are_spread_over_the_gpus_that_it_may_use(count: int, names: str, expected: list[str]) -> None:
    assert visible_gpus(count, names) == expected
