"""tools/plan.py: what it prints, at the widths of a terminal, and what it writes."""

import json
import re

import pytest
from processes import FINETUNE, RECIPE, ROOT, tool

SECTIONS = ["The run", "Boundaries", "Parameters and operations", "Memory", "Time"]
SHALLOW = ["ENCODER.depth", "1", "HEAD.depth", "1"]
MAE = ROOT / "configs" / "mae" / "vit_base.yaml"


@pytest.fixture
def show(capsys, monkeypatch, tmp_path):
    """Exit code, output and errors of the tool at some width, away from benchmarks of this machine."""

    def run(*words: object, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        code = tool("plan").main(["--benchmarks", str(tmp_path / "steps.jsonl"), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def headings(output: str) -> list[str]:
    return [line.partition("   ")[0] for line in output.splitlines() if line and not line.startswith((" ", "─"))]


def flat(output: str) -> str:
    return re.sub(r"\s+", " ", output)


@pytest.mark.parametrize(
    ("path", "width"),
    [
        ("quickstart/mae_digits", 80),
        pytest.param("quickstart/mae_digits", 120, marks=pytest.mark.slow),
        pytest.param("finetune/digits", 80, marks=pytest.mark.slow),
        pytest.param("finetune/digits", 120, marks=pytest.mark.slow),
        ("probe/digits", 80),
        pytest.param("probe/digits", 120, marks=pytest.mark.slow),
    ],
)
def test_plan_tool_shows_every_section_within_the_width(show, path, width):
    code, output, errors = show("--config", ROOT / "configs" / f"{path}.yaml", "ENCODER.depth", "1", width=width)
    assert (code, errors) == (0, "")
    titles = headings(output)
    assert [name for name in titles if name in SECTIONS] == SECTIONS
    assert any(name.startswith("Against ") for name in titles)
    assert max(len(line) for line in output.splitlines() if not line.startswith("  python ")) <= width
    assert "…" not in output  # nothing is cut short
    assert "None" not in output


@pytest.mark.slow
def test_plan_tool_shows_figures_that_are_right(show):
    code, output, _ = show("--config", MAE, "--images", 1_281_167, "--devices", 8, width=120)
    assert code == 0
    text = flat(output)
    assert "4,096 = 64 a device x 8 devices x 8 accumulated" in text
    assert "0.0024 = 0.00015 x 4096 / 256" in text
    assert "249,600 = 312 an epoch x 800" in text
    assert "49 of 196 cells of 16 px stay visible (75.0% hidden)" in text
    assert "tokens 49 x 768" in text
    assert "encoder vit 85,798,656 85,647,360 8.64 25.9" in text
    assert "No difference." in text
    assert "Not known" not in text


def test_plan_tool_compares_what_is_overridden_with_the_recipe(show):
    """The call of the README for images of one's own, whose folder is not here."""
    overrides = "DATA.path /data/plates DATA.labels none DATA.val_share 0.05 DATA.channels 12"
    words = [
        *overrides.split(),
        "DATA.mean",
        "estimate",
        "DATA.std",
        "estimate",
        "DATA.image_size",
        "[96,160]",
        "TRAIN.batch",
        "512",
        *SHALLOW,
    ]
    code, output, _ = show("--config", MAE, *words)
    assert code == 0
    text = flat(output)
    assert "image 12 x 96 x 160" in text
    assert "DATA.channels 12 3" in text
    assert "learning rate at its peak 0.0003 0.0024" in text
    assert "DATA.path /data/plates does not exist" in text
    assert "--images N" in text


def test_plan_tool_gives_the_time_of_one_number_of_gpus_that_are_not_here(show, tmp_path):
    words = ["--config", MAE, "--images", 1_281_167, *SHALLOW, "--json", tmp_path / "plan.json"]
    code, output, _ = show(*words, "--devices", 64, "--gpu", "a100-80")
    assert code == 0
    text, figures = flat(output), json.loads((tmp_path / "plan.json").read_text())
    row = figures["scaling"]["rows"][0]
    seconds = figures["plan"]["images_seen"] * min(each["step_s"] for each in row["costs"].values()) / 4096
    assert f"249,600 steps in {seconds / 60:.3g} minutes" in text
    assert "On paper, on 64 x NVIDIA A100 SXM4 80 GB as assumed below: " in text
    assert "On a machine that has such devices, this measures a step" in text
    assert "On 64 devices on paper" in text
    assert "peak_tflops TFLOP/s" in text
    assert text.count("assumed: ") >= 9
    assert "The NVIDIA A100 SXM4 80 GB has 80 GiB (assumed: its data sheet): the step fits" in text
    assert max(len(line) for line in output.splitlines() if not line.startswith("  python ")) <= 80


@pytest.mark.slow
def test_plan_tool_names_the_command_that_measures_and_then_uses_what_it_found(show, tmp_path):
    words = ["--config", RECIPE, *SHALLOW]
    _, before, _ = show(*words, width=400)
    assert f"python tools/plan.py --config {RECIPE} --measure {' '.join(SHALLOW)}" in before
    code, measured, errors = show(*words, "--measure", 2)
    assert (code, errors) == (0, "")
    assert "Measured here, on a CPU" in flat(measured)
    code, after, _ = show(*words)
    assert re.search(r"images/s and [\d.,]+ ms a step", flat(after))
    assert re.search(r"The run: 1,320 steps in", flat(after))
    record = json.loads((tmp_path / "steps.jsonl").read_text())
    assert record["measured"]["steps"] == 2
    assert flat(measured) == flat(after)


def test_plan_tool_writes_all_figures(show, tmp_path):
    file = tmp_path / "plan.json"
    assert show("--config", FINETUNE, "--json", file, "ENCODER.depth", "1")[0] == 0
    figures = json.loads(file.read_text())
    assert figures["plan"]["images_seen"] == figures["plan"]["steps"] * figures["batch"]
    assert figures["memory"]["cpu"]["total"] > figures["memory"]["cpu"]["weights"] > 0
    assert [boundary["what"] for boundary in figures["boundaries"]][-1] == "scores"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        (["--config", MAE, "RECIPE", "mae/vit"], "RECIPE is 'mae/vit'"),
        pytest.param(
            ["--config", MAE, "--devices", "3"],
            "not a multiple of DATA.batch_size 64 x 3 devices",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--config", MAE, "--images", "4000"], "fewer than the 4096 of one step", marks=pytest.mark.slow),
        (["--config", FINETUNE.parent / "mae_vit_base.yaml", "--measure", "1"], "--classes N"),
        (["--config", RECIPE, "--measure", "-1"], "--measure -1"),
    ],
)
def test_plan_tool_refuses_with_one_line(show, words, message):
    code, output, errors = show(*words)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_plan_tool_names_what_a_measurement_needs(show):
    _, output, _ = show("--config", FINETUNE.parent / "mae_vit_base.yaml", "ENCODER.depth", "1", width=200)
    assert "--classes N --measure" in output


def test_plan_tool_never_shows_a_size_as_zero_and_ends_with_memory_and_time(show):
    order = {*SECTIONS, "Not known", "Warnings", "Recipe"}
    code, output, _ = show("--config", RECIPE, *SHALLOW)
    assert code == 0
    rows = output[output.index("\nMemory ") :].splitlines()
    assert not any(re.search(r"\s0\.0+(\s|$)", row) for row in rows)
    assert [name for name in headings(output) if name in order][-2:] == ["Memory", "Time"]
    _, output, _ = show("--config", MAE, *SHALLOW)  # whose images are not here
    assert [name for name in headings(output) if name in order][-3:] == ["Not known", "Memory", "Time"]
