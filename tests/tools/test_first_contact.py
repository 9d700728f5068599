"""benchmarks/first_contact.py: its budget and limits, what it records, missing packages, a run at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import setuptools
from mim_toolkit import benchmark
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]  # not from processes, which imports PyTorch
SCRIPT = ROOT / "benchmarks" / "first_contact.py"
CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


@pytest.fixture
def contact(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import first_contact

    return first_contact


@pytest.fixture
def choice(contact, tmp_path):
    args = Namespace(tiny=False, data=None, photos=None)
    return contact.Choice.of(args, tmp_path, tmp_path / "site")


def bare(*words: object, **environment: str) -> tuple[int, list[str]]:
    """Exit code and lines of the script in a Python without any package."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT, *map(str, words)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def step(contact, name: str, code: str, **values):
    command = (sys.executable, "-S", "-c", code, "{figures}")
    return contact.Step(name=name, call="first", command=command, **{"limit_s": 10, "least_s": 0, **values})


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# -------------------------------------------------------------------- budget, limits and records


def test_first_contact_records_what_passes_fails_hangs_and_does_not_fit(contact, choice, tmp_path, capsys):
    writing = "import sys; print('hello'); open(sys.argv[1], 'w').write('{\"batches\": []}')"
    steps = [
        step(contact, "good", writing),
        step(contact, "bad", "import sys; print('what went wrong'); sys.exit(3)"),
        step(contact, "hanging", CHILD, limit_s=2),
        step(contact, "large", "print('never')", least_s=1000),
        step(contact, "absent", "print('never')", reason="no images"),
        step(contact, "last", "print('still runs')"),
    ]
    begin = time.monotonic()
    assert not contact.Contact(choice, tmp_path / "out", 60, 0, begin).run(steps)
    records = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    states = {record["name"]: record["state"] for record in records}
    assert list(states.values()) == ["passed", "failed", "stopped at its limit", "skipped", "skipped", "passed"]
    by_name = {record["name"]: record for record in records}
    assert (by_name["good"]["figures"], by_name["last"]["figures"]) == ({"batches": []}, {})
    assert by_name["good"]["tail"] == "hello"
    assert "what went wrong" in by_name["bad"]["tail"]
    assert 2 <= by_name["hanging"]["seconds"] < 12
    assert not alive(int(by_name["hanging"]["tail"]))
    assert "it needs 1000 s" in by_name["large"]["reason"]
    text = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"| {name} | {state} |" in text for name, state in states.items())
    assert "what went wrong" in text
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_first_contact_stops_the_last_step_where_the_budget_ends(contact, choice, tmp_path):
    begin, long = time.monotonic(), step(contact, "long", "import time; time.sleep(60)")
    assert contact.Contact(choice, tmp_path / "out", 3, 0, begin).run([long])
    assert time.monotonic() - begin < 20
    record = json.loads((tmp_path / "out" / "steps.jsonl").read_text())
    assert record["state"] == "stopped at its limit"
    assert 0 < record["limit_s"] <= 3


def test_first_contact_adds_a_second_call_to_the_same_summary(contact, choice, tmp_path):
    for name in ("one", "two", "one"):
        contact.Contact(choice, tmp_path / "out", 60, 0, time.monotonic()).run([step(contact, name, "print(1)")])
    table = [line for line in (tmp_path / "out" / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 2


def test_first_contact_counts_tests_of_a_run_that_was_stopped(contact):
    from first_contact_summary import tests_line

    stopped = "tests/gpu/test_a.py::test_b[fp16, x] PASSED [ 1%]\ntests/gpu/test_a.py::test_c FAILED [ 2%]\n"
    assert tests_line(f"{stopped}tests/gpu/test_a.py::test_d") == "1 passed, 1 failed when it ended"
    ended = "FAILED tests/gpu/test_a.py::test_c[1] - AssertionError\n==== 1 failed, 3 passed in 4.00s ====\n"
    assert tests_line(ended) == "1 failed, 3 passed in 4.00s: test_c[1]"


# -------------------------------------------------------------------- packages


def test_first_contact_knows_what_setup_py_installs(contact, monkeypatch):
    import first_contact_packages as packages

    keywords: dict = {}
    monkeypatch.setattr(setuptools, "setup", keywords.update)
    exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    required = {Requirement(line).name for line in keywords["install_requires"]}
    assert set(packages.NEEDED.values()) | set(packages.UNUSED.values()) == required


def test_first_contact_names_missing_packages_in_its_first_line(tmp_path):
    code, lines = bare("first", "--output", tmp_path / "out")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("missing packages: torch, ")
    assert "yacs, " in lines[0]
    assert "nothing can run" in lines[0]
    assert "WHEELS=wheels" in lines[0]
    assert not (tmp_path / "out").exists()


def test_first_contact_refuses_a_folder_without_wheels(tmp_path):
    code, lines = bare("first", WHEELS=str(tmp_path))
    assert code == 2
    assert f"--wheels {tmp_path}: no .whl file is there" in lines[-1]


@pytest.mark.slow
def test_first_contact_installs_wheels_without_a_network(tmp_path):
    with zipfile.ZipFile(tmp_path / "yacs-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("yacs/__init__.py", "")
        wheel.writestr("yacs-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: yacs\nVersion: 9.9\n")
        wheel.writestr("yacs-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("yacs-9.9.dist-info/RECORD", "")
    code, lines = bare("first", "--list", "--wheels", tmp_path)
    assert code == 0, lines
    assert "yacs" not in lines[0]
    assert "simplejpeg" in lines[0]


# -------------------------------------------------------------------- the steps


@pytest.mark.parametrize("tiny", [False, True])
def test_first_contact_gives_commands_that_there_are(contact, tmp_path, tiny):
    choice = contact.Choice.of(Namespace(tiny=tiny, data=None, photos=None), tmp_path, tmp_path / "site")
    steps = contact.steps_of(choice, "both")
    assert len({step.name for step in steps}) == len(steps)
    commands = [step.command for step in steps if "tools/benchmark.py" in step.command]
    assert len(commands) == 14
    for command in commands:
        words = command[command.index("tools/benchmark.py") + 1 :]
        args = benchmark.parser().parse_intermixed_args(words)
        assert (ROOT / args.config).is_file()
    assert [step.name for step in steps if step.reason] == ([] if tiny else ["cifar10"])
    for call, budget in contact.BUDGETS.items():
        assert all(step.least_s <= step.limit_s <= budget for step in steps if step.call == call)


def test_first_contact_says_that_the_time_of_a_run_was_over_before_it_began(contact, tmp_path):
    from first_contact_cifar10 import Phase  # beside the script, whose folder `contact` puts on the path

    phase = Phase("pretraining", str(ROOT / "configs" / "cifar10" / "mae_vit_tiny.yaml"), {}, tmp_path, tiny=True)
    with pytest.raises(RuntimeError, match="pretraining: 0 s were over before it had begun to train"):
        phase._train(tmp_path / "run", {}, 0.0)


def test_first_contact_names_gpu_tests_that_there_are(contact):
    from first_contact_steps import OLD_TESTS

    for name in OLD_TESTS:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text()


def test_first_contact_lists_its_steps_and_refuses_an_unknown_one(contact, capsys):
    assert contact.main(["both", "--list"]) == 0
    assert any(line.startswith("second ") and line.endswith("cifar10") for line in capsys.readouterr().out.splitlines())
    assert contact.main(["second", "--list", "--steps", "attention"]) == 2
    assert "--steps attention: no such step. Allowed: cifar10, " in capsys.readouterr().out


@pytest.mark.slow
def test_first_contact_runs_at_a_tiny_size(tmp_path):
    """The shell script, with steps that do not compile; GPU tests have MIM_TEST_DEVICE=cpu for that."""
    names = ["environment", "simmim/swin_base_100ep at 256", "mae/vit_huge at 128, fsdp"]
    done = subprocess.run(
        [shutil.which("bash"), ROOT / "benchmarks" / "first_contact.sh", "both", "--steps", *names],
        env=os.environ | {"PYTHON": sys.executable, "TINY": "1", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(record["name"], record["state"]) for record in records] == [(name, "passed") for name in names]
    text = (tmp_path / "summary.md").read_text()
    assert "its numbers mean nothing" in text
    assert "ours / transformers " in text
    assert records[2]["figures"]["strategy"] == "fsdp"
