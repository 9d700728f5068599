"""Paths of a GPU on a machine without one: MIM_FAKE_GPU names a program that runs a command on a stand-in for CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAKE_GPU = os.environ.get("MIM_FAKE_GPU", "")
# kinds of walk.py that one process walks: the loaders first, before CUDA begins
PROCESSES = [("loaders", "runs", "commands"), ("ranks",), ("compiled",), ("counts",)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FAKE_GPU, reason="MIM_FAKE_GPU names no stand-in for a GPU"),
]


@pytest.mark.parametrize("kinds", PROCESSES, ids=" ".join)
def test_every_path_of_a_gpu_walks_and_no_step_makes_the_host_wait(
    tmp_path: Path, tell, kinds: tuple[str, ...]
) -> None:
    root = HERE.parents[1]
    command = [FAKE_GPU, sys.executable, str(HERE / "walk.py"), str(tmp_path), *kinds]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "tools")))}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    lines = [line for line in process.stdout.splitlines() if line.startswith("walked")]
    tell(f"{len(lines)} paths of a GPU walked on the stand-in: {', '.join(kinds)}")
    assert process.returncode == 0, process.stdout + process.stderr
    assert lines
