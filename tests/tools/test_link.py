"""benchmarks/link.py: a run at a tiny size between two network namespaces, and what it says where there can be none."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "link.py"
TINY = {"DATA.batch_size": 2, "TRAIN.precision": "fp32", "ENCODER.width": 192, "ENCODER.depth": 6, "ENCODER.heads": 2}


def namespaces() -> bool:
    """Whether this process may make what the script needs."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "setpriv", "unshare", "nsenter"))):
        return False
    limited = "ip link add name a type veth peer name b && tc qdisc add dev a root tbf rate 1mbit burst 9kb limit 9kb"
    return subprocess.run(["unshare", "--net", "sh", "-c", limited], capture_output=True).returncode == 0


def link(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPT), "--config", "quickstart/simmim_digits", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="needs root, iproute2 and network namespaces with tbf")
def test_link_measures_the_seconds_of_the_bytes_that_go_through_it():
    process = link("--rates", 100, "--rounds", 1, *(word for pair in TINY.items() for word in pair))
    assert process.returncode == 0, process.stderr
    weights = int(re.match("([\\d,]+) weights", process.stdout)[1].replace(",", ""))
    lines = [line for line in process.stdout.splitlines() if line[:3] == "| d"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:2] for row in rows] == [
        [case, rate] for case in ("ddp", "ddp, 2 accumulated") for rate in ("no limit", "100")
    ]
    for row in rows:
        assert float(row[2]) == pytest.approx(4 * weights / 1e6, rel=0.1, abs=0.1)  # MB that each of two sends
    for row in rows[1::2]:
        added = float(row[4].split()[0])
        assert 0.5 * 8 * float(row[2]) / 100 < added < 3 + 2 * 8 * float(row[2]) / 100


@pytest.mark.slow
def test_link_says_what_it_needs(tmp_path):
    process = link(PATH=str(tmp_path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: this needs root, and ip, tc, setpriv, unshare, nsenter\n"


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="needs root, iproute2 and network namespaces with tbf")
def test_link_ends_its_processes_with_itself():
    line = [sys.executable, str(SCRIPT), "--config", "quickstart/simmim_digits"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(started := children.read_text().split()) < 2:
            assert process.poll() is None
        process.kill()
    states = {Path(f"/proc/{child}/stat") for child in started}
    deadline = time.monotonic() + 60
    while any(state.exists() and ") Z " not in state.read_text() for state in states):
        assert time.monotonic() < deadline
