"""Paths of a GPU on a machine without one: MIM_FAKE_GPU names a program that runs a command on a stand-in for CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAKE_GPU = os.environ.get("MIM_FAKE_GPU", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FAKE_GPU, reason="MIM_FAKE_GPU names no stand-in for a GPU"),
]


def test_every_path_of_a_gpu_walks_and_no_step_makes_the_host_wait(tmp_path: Path, tell) -> None:
    command = [FAKE_GPU, sys.executable, str(HERE / "walk.py"), str(tmp_path)]
    root = HERE.parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "tools")))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    walked = [line for line in ended.stdout.splitlines() if line.startswith("walked")]
    tell(f"{len(walked)} paths of a GPU walked on the stand-in")
    assert ended.returncode == 0, ended.stdout + ended.stderr
