"""tools/benchmark.py: real runs of it on tiny models, what it prints and writes, and what it refuses."""

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest
from PIL import Image
from processes import FINETUNE, RECIPE, ROOT, TINY, tool
from processes import run as run_process
from small_models import CPU

from mim import load_config
from mim.engine.distributed.world import World
from mim.lab.benchmark.loading import measure_loading
from mim.lab.dryrun.records import find_record
from mim.lab.dryrun.task import dry_task

KEYS = {key: value for key, value in TINY.items() if key.startswith(("ENCODER.", "HEAD.", "TRAIN.precision"))}
MODEL = [word for pair in KEYS.items() for word in map(str, pair)]
ONE_BLOCK = [word for pair in (KEYS | {"ENCODER.depth": 1}).items() for word in map(str, pair)]
ENCODER = [word for key, value in KEYS.items() if key.startswith("ENCODER.") for word in (key, str(value))]
FEW = ["--rounds", "2", "--steps", "1"]
SIMMIM = ROOT / "configs" / "quickstart" / "simmim_digits.yaml"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Exit code, output and errors of the tool, which writes to a folder of its own."""

    def call(*words: object, width: int = 100) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        code = tool("benchmark").main(["--folder", str(tmp_path), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def cells(output: str, table: str, row: str) -> list[str]:
    """A row of a table of the output."""
    lines = output.partition(f"\n{table}\n")[2].splitlines()
    return next(re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith(row))


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.slow
def test_benchmark_tool_runs_both_contenders(run, tmp_path):
    words = ["--config", RECIPE, "--against", "transformers", *FEW, *MODEL]
    code, output, errors = run(*words, "--json", tmp_path / "found.json")
    assert (code, errors) == (0, "")
    assert max(len(line) for line in output.splitlines() if not line.startswith("Written: ")) <= 100
    ours, other = (cells(output, "Time", side) for side in ("ours", "transformers"))
    numbers = re.search(
        r"ours / transformers: ([\d.]+) times the images a second \(([\d.]+) to ([\d.]+) by round\)", output
    )
    ratio, low, high = map(float, numbers.groups())
    assert number(ours[1]) / number(other[1]) == pytest.approx(ratio, abs=0.006 + 0.002 * ratio)
    assert low - 0.01 <= ratio <= high + 0.01
    assert number(ours[1]) == pytest.approx(32 / number(ours[2]) * 1000, rel=2e-3)
    assert sum(map(number, ours[3:])) == pytest.approx(number(ours[2]), rel=0.5)  # medians of different steps
    work, their_work = (cells(output, "Work and memory", side) for side in ("ours", "transformers"))
    assert work[1] == their_work[1]
    assert "ViTMAEForPreTraining, sdpa attention; eager" in output

    result = json.loads((tmp_path / "found.json").read_text())["batches"][0]
    assert result["batch"] == 32
    parameters = [result["contenders"][name]["parameters"] for name in ("ours", "transformers")]
    assert parameters == [number(work[1])] * 2
    (file,) = tmp_path.glob("quickstart_mae_digits_*.md")
    text = file.read_text()
    assert f"python tools/benchmark.py --folder {tmp_path} --config {RECIPE} --against transformers" in text
    assert numbers[0] in text
    assert re.search(r"torch \d.*transformers \d", text)
    cfg = load_config(RECIPE, MODEL)
    record = find_record(tmp_path / "steps.jsonl", cfg, dry_task(cfg).classes, CPU)
    assert record.measured.steps == 2


@pytest.mark.slow
def test_benchmark_tool_runs_simmims_peer_with_its_mask(run):
    code, output, errors = run("--config", SIMMIM, "--against", "transformers", "--no-write", *FEW, *ENCODER)
    assert (code, errors) == (0, "")
    assert "ViTForMaskedImageModeling, sdpa attention; eager" in output
    assert "Written" not in output


@pytest.mark.slow
def test_benchmark_tool_tries_batches_on_real_images(run, tmp_path):
    code, output, _ = run("--config", RECIPE, "--batch-sizes", 4, 8, "--real", "--no-write", *FEW, *MODEL)
    assert code == 0
    assert re.search(r"^batch +images/s +ms a step +data", output, re.MULTILINE)
    assert re.search(r"Best batch of ours: [48], ", output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_benchmark_tool_profiles_kinds_of_work(run, tmp_path):
    code, output, _ = run("--config", RECIPE, "--profile", *FEW, *MODEL)
    assert code == 0
    title = "Where a step goes: ms of the CPU, under the profiler"
    assert number(cells(output, title, "attention")[1]) > 0
    total = number(cells(output, title, "together")[1])
    kinds = ("matrix", "attention", "normal", "activation", "element", "copies", "optimizer", "other")
    assert sum(number(cells(output, title, kind)[1]) for kind in kinds) == pytest.approx(total, rel=0.01)
    assert any(line.startswith("aten::addmm") for line in output.splitlines())
    (file,), (picture,) = tmp_path.glob("*.md"), tmp_path.glob("*.png")
    assert f"]({picture.name})" in file.read_text()
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_benchmark_tool_under_torchrun_names_the_strategy_and_remembers_nothing(tmp_path):
    """One process in a group of one: the model is really wrapped."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    words = [
        "tools/benchmark.py",
        "--folder",
        tmp_path,
        "--config",
        RECIPE,
        *FEW,
        *MODEL,
        "DISTRIBUTED.strategy",
        "fsdp",
    ]
    code, output = run_process([*start, *map(str, words)])
    assert code == 0, output
    assert "ours: vit, transformer, pixels, mse; eager, fsdp" in output
    assert not (tmp_path / "steps.jsonl").exists()
    (file,) = tmp_path.glob("*.md")
    assert f"torchrun --nproc_per_node 1 tools/benchmark.py --folder {tmp_path}" in file.read_text()


def test_benchmark_tool_refuses_several_processes(run, monkeypatch):
    several = contextlib.nullcontext(World(0, 2, CPU))
    monkeypatch.setattr("mim.lab.benchmark.run.join_world", lambda settings: several)
    code, output, errors = run("--config", RECIPE, *FEW, *MODEL)
    assert (code, output) == (2, "")
    assert "torchrun started 2 processes: a benchmark needs --nproc_per_node 1" in errors


@pytest.mark.slow
def test_benchmark_tool_profiles_compiled_kernels(run):
    code, output, _ = run(
        "--config", RECIPE, "--compile", "--against", "eager", "transformers-compiled", "--profile", "--no-write", *FEW,
        *ONE_BLOCK,
    )  # fmt: skip
    assert code == 0
    assert re.search(r"^graph_\d+_cpp_fused", output, re.MULTILINE)
    assert "ours / eager: " in output
    assert "ours / transformers-compiled: " in output
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        (["--config", RECIPE, "--rounds", "0"], "--rounds is 0"),
        (["--config", RECIPE, "--batch-sizes", "0"], "--batch-sizes is 0"),
        (["--config", RECIPE, "--batch-sizes", "8", "many"], "--batch-sizes is 8 many"),
        (["--config", RECIPE, "--against", "timm"], "--against is timm: Allowed: eager, transformers"),
        (["--config", RECIPE, "--batch-sizes", "8", "DATA.batch_size", "8"], "--batch-sizes and DATA.batch_size"),
        (["--config", RECIPE, "TRAIN.batch", "64"], "TRAIN.batch has no effect"),
        (["--config", RECIPE, "--against", "eager"], "--against eager: TRAIN.compile is false"),
        (["--config", RECIPE, "--against", "transformers", "HEAD.width", "15"], "HEAD.heads 4 does not divide"),
        (["--config", RECIPE, "--against", "transformers", "TARGET.stride", "2"], "TARGET.stride 1"),
        (["--config", FINETUNE, "--against", "transformers"], "TASK is finetune"),
        (["--config", ROOT / "configs" / "mae" / "vit_base.yaml", "--real", "DATA.batch_size", "2"], "--real reads"),
        (["--config", FINETUNE.parent / "mae_vit_base.yaml", "DATA.batch_size", "2"], "--classes N"),
    ],
)
def test_benchmark_tool_refuses_with_one_line(run, tmp_path, words, message):
    code, output, errors = run(*words)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_benchmark_tool_measures_the_loader_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mim.lab.benchmark.loading.measure_loading", partial(measure_loading, seconds=0.05))
    for name in ("train/cat", "train/dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            Image.effect_noise((40, 48), 50).convert("RGB").save(tmp_path / "images" / name / f"{index}.jpg")
    code, output, errors = run(
        *("--config", RECIPE.parents[1] / "mae" / "vit_base.yaml", "--data", *FEW, *MODEL),
        *("DATA.path", tmp_path / "images", "DATA.image_size", "[32, 32]", "DATA.batch_size", 4),
    )
    assert (code, errors) == (0, "")
    ours, other = (number(cells(output, "Loading, images/s on one core", side)[1]) for side in ("ours", "torchvision"))
    ratio = float(re.search(r"ours / torchvision: ([\d.]+) times", output)[1])
    assert ours / other == pytest.approx(ratio, abs=0.006 + 0.002 * ratio)
    (file,) = tmp_path.glob("mae_vit_base_loader_*.md")
    assert f"ImageFolder of {tmp_path / 'images' / 'train'}" in file.read_text()


def test_benchmark_script_names_configs_and_flags_that_there_are():
    """Run with `echo` for the interpreter, the script prints the calls that it would make."""
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "cpu.sh", "/photos"],
        env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    calls = [line.partition("tools/benchmark.py ")[2].split() for line in lines if "tools/benchmark.py " in line]
    assert len(calls) == 4
    for words in calls:
        args = tool("benchmark").parser().parse_intermixed_args(words)
        assert (ROOT / args.config).is_file()


def test_kernels_of_attention_compute_the_same(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("attention", ROOT / "benchmarks" / "attention.py")
    attention = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "attention", attention)
    spec.loader.exec_module(attention)
    monkeypatch.delitem(attention.KERNELS, "explicit, compiled")
    monkeypatch.setattr(attention, "SHAPES", [attention.Shape("small", 2, 2, 9, 16, biased=True)])
    monkeypatch.setattr(sys, "argv", ["attention.py", "--device", "cpu", "--batch", "2", "--rounds", "2"])
    attention.main()
    output = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line.startswith(" ")}
    errors = [float(rows[name][-1]) for name in ("explicit", "sdpa")]
    assert all(0 < error < 0.02 for error in errors)  # bf16 keeps 8 bits
    assert "flex: no backward pass on a CPU" in output
