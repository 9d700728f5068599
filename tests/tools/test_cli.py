"""What all commands share: how they start, what --help shows, how they report an error and end."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mim_toolkit import COMMANDS
from processes import RECIPE, ROOT, tool

from mim import cli
from mim.config.recipes import find_file, recipe_file
from mim.errors import (
    ConfigError,
    DataLost,
    ExitCode,
    RanksLost,
    RunInterrupted,
    RunStopped,
)

HEAVY = ("torch", "torchvision", "timm", "numpy", "matplotlib", "sklearn", "scipy", "transformers")


def start(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that must end by itself. environment: PYTHONPATH comes before the clone."""
    path = os.pathsep.join(filter(None, (environment.pop("PYTHONPATH", ""), str(ROOT))))
    variables = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", **environment}
    return subprocess.run(
        list(map(str, words)), env=variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def end(error: BaseException | None, *words: str) -> int:
    """The exit code of a command that raises an error."""

    def command(args) -> None:
        if error is not None:
            raise error

    return cli.run(cli.Parser("train", "", ()), command, words)


# -------------------------------------------------------------------- the commands


def test_every_command_has_a_file_a_tool_and_a_console_script(monkeypatch):
    settings: dict = {}
    monkeypatch.setattr("setuptools.setup", settings.update)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    scripts = [line.split(" = ") for line in settings["entry_points"]["console_scripts"]]
    assert {name for name, _ in scripts} == {f"mim-{name}" for name in COMMANDS}
    assert {target for _, target in scripts} == {"mim_toolkit:script"}
    for folder in (ROOT / "tools", ROOT / "tools" / "mim_toolkit"):
        assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(COMMANDS)
    for name in COMMANDS:
        assert f'run("{name}")' in (ROOT / "tools" / f"{name}.py").read_text()


def test_values_that_a_command_repeats_are_those_of_the_toolkit():
    """A command must not import them: they live in modules that import torch."""
    from mim.data.sources.packing import PackSettings
    from mim.interop import WeightsFormat
    from mim.lab.benchmark import AGAINST, ROUNDS

    assert set(tool("convert").FORMATS) == set(WeightsFormat.members())
    assert PackSettings.short_side == tool("pack").SHORT_SIDE
    assert tool("benchmark").ROUNDS == ROUNDS
    assert all(name in tool("benchmark").TEXT for name in AGAINST)


WITHOUT_TORCH = """
import sys
from mim_toolkit import run

def tried(*words):
    try:
        code = run(words[0], words[1:])
    except SystemExit as stop:
        code = stop.code
    loaded = [name for name in {heavy} if name in sys.modules]
    assert not loaded, (words, loaded)
    assert code == {code}, (words, code)

for words in {calls}:
    tried(*words)
"""


def without_torch(calls: list[list[str]], code: int) -> subprocess.CompletedProcess[str]:
    """Runs commands, one after the other in one process, of which none may import what is heavy."""
    done = start(sys.executable, "-c", WITHOUT_TORCH.format(heavy=HEAVY, code=code, calls=calls))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_help_needs_no_torch_and_fits_80_columns():
    done = without_torch([[name, "--help"] for name in COMMANDS], code=0)
    assert done.stdout.count("usage: ") == done.stdout.count("examples:\n") == len(COMMANDS)
    text = re.sub(r"examples:\n(  .*\n)+", "", done.stdout)  # to be copied as they are
    assert max(map(len, text.splitlines())) <= 80
    assert "exit codes:" in done.stdout


def test_mistakes_in_words_and_configs_need_no_torch_and_are_one_line():
    config = ["--config", "quickstart/mae_digits"]
    calls = [[name, "--nonsense"] for name in COMMANDS]
    calls += [[name, *config, *keys] for name in ("train", "plan", "benchmark", "masks") for keys in MISTAKES]
    calls += [["quickstart", "TRAIN.epoch", "5"], ["train"], ["convert", "a", "b", "--to", "keras"]]
    done = without_torch(calls, code=2)
    lines = done.stderr.splitlines()
    assert len(lines) == len(calls)
    assert all(line.startswith("error: ") for line in lines)


MISTAKES = [
    ["TRAIN.epoch", "5"],
    ["TRIAN.epochs", "5"],
    ["TRAIN.epochs", "many"],
    ["TRAIN.epochs", "-1"],
    ["TRAIN.epochs"],
    ["ENCODER.name", "vitt"],
    ["ENCODER.dpeth", "3"],
]


# -------------------------------------------------------------------- how they end


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (ValueError("mend it"), 2, "error: mend it"),
        (ConfigError("a key"), 2, "error: a key"),
        (RunStopped("not finite"), 3, "error: not finite"),
        (DataLost("the mount is gone"), 3, "error: the mount is gone"),
        (OSError(28, "No space left on device", "/runs/log.txt"), 3, "error: /runs/log.txt: No space left on device"),
        (OSError("read failed"), 3, "error: read failed"),
        (BrokenPipeError(32, "Broken pipe"), 3, "error: [Errno 32] Broken pipe"),  # not that of stdout
        (RanksLost("rank 1 is gone"), 4, "error: rank 1 is gone"),
        (RunInterrupted("a checkpoint is written"), 75, "a checkpoint is written"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert end(error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == line


def test_traceback_raises_and_a_fault_of_ours_is_never_hidden():
    with pytest.raises(ValueError, match="mend it"):
        end(ValueError("mend it"), "--traceback")
    with pytest.raises(TypeError):
        end(TypeError("a fault"))


def test_every_exit_code_is_in_the_help_of_train():
    codes = set(map(int, re.findall(r"^  (\d+)", cli.EXIT_CODES, re.MULTILINE)))
    assert codes == set(ExitCode) - {ExitCode.PARTLY}


def test_data_that_is_lost_under_masks_over_images_is_one_line(monkeypatch, tmp_path, capsys):
    def lose(cfg):
        raise DataLost("images are out of reach")

    monkeypatch.setattr("mim.lab.masks.build_data", lose)
    words = ["--config", str(RECIPE), "--over", "--output", str(tmp_path / "a.png")]
    assert tool("masks").main(words) == 3
    assert capsys.readouterr().err == "error: images are out of reach\n"


def test_rank_that_is_lost_in_an_evaluation_is_one_line(monkeypatch, tmp_path, capsys):
    def lose(*_):
        raise RanksLost("rank 0 cannot go on: rank 1 is gone")

    monkeypatch.setattr("mim.evaluate.knn", lose)
    assert tool("evaluate").main(["knn", str(tmp_path)]) == 4
    assert capsys.readouterr().err == "error: rank 0 cannot go on: rank 1 is gone\n"


def test_quickstart_stopped_by_hand_is_one_line(monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mim.run.train", stop)
    assert tool("quickstart").main(["--output", str(tmp_path), "TRAIN.epochs", "1"]) == 130
    assert capsys.readouterr().err.startswith("stopped")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--help"],
        ["train", "--keys"],
        pytest.param(["plan", "--config", "quickstart/mae_digits"], marks=pytest.mark.slow),
    ],
)
def test_reader_that_leaves_ends_a_command_silently(words):
    command = f"{sys.executable} -m mim {' '.join(words)} | head -1"
    done = start("bash", "-c", command, PYTHONUNBUFFERED="1")
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_of_a_study_break_no_number_and_repeat_the_names(width):
    from rich.console import Console

    names = ("", "MAE", "SimMIM with the decoder of MAE, and a long name", "scratch")
    columns = [names, *((f"fine-tuning, {count} labels", "93.4 ± 0.5", "85.6 ± 12.5", "-") for count in range(7))]
    console = Console(width=width, file=io.StringIO())
    tables = list(tool("sweep")._tables(columns, width))
    for table in tables:
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("93.4 ± 0.5") == text.count("85.6 ± 12.5") == 7
    assert text.count("scratch") == len(tables) > 7 * 12 // width


# -------------------------------------------------------------------- ways to start


def test_module_lists_the_commands_and_runs_them():
    done = start(sys.executable, "-m", "mim")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    done = start(sys.executable, "-m", "mim", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no command 'trian'\n")
    done = start(sys.executable, "-m", "mim", "train")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--config" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [ROOT / "tools" / "train.py", "--help"],
        [
            "-P",
            *("-P", "-c"),
            "import sys; sys.argv = ['/bin/mim-train', '--help']; import mim_toolkit; sys.exit(mim_toolkit.script())",
        ],
    ],
    ids=["tool", "script"],
)
@pytest.mark.parametrize("source", ["", "import a_package_that_is_not_here", '"""Another mim."""'])
def test_another_package_named_mim_is_reported_in_the_first_line(tmp_path, words, source):
    (tmp_path / "mim").mkdir()
    (tmp_path / "mim" / "__init__.py").write_text(source)
    done = start(sys.executable, *words, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert "a_package_that_is_not_here" in done.stderr if "import" in source else str(tmp_path / "mim") in done.stderr


def test_openmims_command_says_what_happened_to_it(capsys):
    assert cli.cli() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "openmim" in error
    assert "mim-train" in error


def test_threads_sleep_unless_the_user_chose(monkeypatch):
    for keys in cli.WAITING, *({key: "7"} for key in cli.WAITING_KEYS):
        for key in cli.WAITING_KEYS:
            monkeypatch.delenv(key, raising=False)
        if keys is not cli.WAITING:
            monkeypatch.setenv(*next(iter(keys.items())))
        cli.let_threads_sleep()
        assert {key: os.environ[key] for key in cli.WAITING_KEYS if key in os.environ} == keys


def test_commands_name_themselves_as_they_were_started(monkeypatch):
    for program, expected in (
        ("/bin/mim-plan", ["mim-plan"]),
        ("/lib/mim/__main__.py", ["python", "-m", "mim", "plan"]),
        ("tools/plan.py", ["python", "tools/plan.py"]),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert cli.command_words("plan") == expected


# -------------------------------------------------------------------- recipes by name


def test_recipe_is_found_by_its_name_and_a_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for request in ("mae/vit_base", "mae/vit_base.yaml", "configs/mae/vit_base.yaml"):
        assert find_file(request) == recipe_file("mae/vit_base")
    assert find_file("studies/digits/transfer").name == "transfer.yaml"
    (tmp_path / "mae").mkdir()
    assert find_file("mae/vit_base") == recipe_file("mae/vit_base")
    (tmp_path / "mae" / "vit_base").write_text("SEED: 1")
    assert find_file("mae/vit_base") == Path("mae/vit_base")


@pytest.mark.parametrize(("request_", "near"), [("mae/vit_bse", "mae/vit_base"), ("vit_huge", "mae/vit_huge")])
def test_recipe_that_does_not_exist_names_those_that_are_close(request_, near):
    with pytest.raises(ConfigError, match=f"config {request_} does not exist.*{near}"):
        find_file(request_)


# -------------------------------------------------------------------- a wheel


@pytest.mark.slow
def test_wheel_outside_the_clone_trains_and_plans_by_the_names_of_recipes(tmp_path):
    """An environment that borrows the installed libraries, and has this toolkit from its wheel alone."""
    import site
    import venv

    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", tmp_path / "venv" / "bin" / "python"]
    (packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    done = start(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", next((clone / "dist").glob("*.whl")))
    assert done.returncode == 0, done.stderr
    scripts = tmp_path / "venv" / "bin"

    def call(name: str, *words: str) -> str:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "80"}
        done = subprocess.run(
            [scripts / name, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "mim-plan" in call("mim-plan", "--help")
    assert "No difference." in call("mim-plan", "--config", "mae/vit_base", "ENCODER.depth", "12")
    keys = [
        "TRAIN.epochs",
        "1",
        "EVALUATE.at_start",
        "false",
        "EVALUATE.reconstructions",
        "0",
        "LOG.tensorboard",
        "false",
    ]
    call("mim-train", "--config", "quickstart/mae_digits", *keys)
    assert (tmp_path / "runs" / "mae_digits" / "summary.json").is_file()
    where = call("python", "-c", "import mim; print(mim.__file__)")
    assert where.startswith(str(packages))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "quickstart/mae_digits", "--output", "{}/run.pt"],
        ["sweep", "studies/digits/transfer", "--output", "{}/page.html"],
        ["quickstart", "--output", "{}/out.png"],
        ["benchmark", "--config", "quickstart/mae_digits", "--folder", "{}/out.json"],
    ],
)
def test_commands_that_write_a_folder_refuse_the_name_of_a_file(tmp_path, capsys, words):
    assert tool(words[0]).main([word.format(tmp_path) for word in words[1:]]) == 2
    assert "files are written into a folder, so name one without ." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_check_of_a_config_leaves_keys_of_an_encoder_that_a_checkpoint_brings() -> None:
    cli.check_config("finetune/digits", ["INIT.checkpoint", "runs/swin", "ENCODER.window", "4"])
    for words in (["ENCODER.window", "4"], ["INIT.checkpoint", "runs/swin", "TRAIN.window", "4"]):
        with pytest.raises(ConfigError, match=r"unknown key \w+\.window"):
            cli.check_config("finetune/digits", words)
