"""One rank of two is killed or hangs: the other names it and ends in time; torchrun's restarts finish the run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted import EPOCH, KEYS, STEPS, as_undisturbed, finished, launch_two, logged, named
from processes import command, start

pytestmark = pytest.mark.slow
TIMEOUT = 10  # DISTRIBUTED.timeout_s
AT = 31  # steps, after which a rank is hit: in the middle of an epoch
SPARE = 12  # seconds: what a silent rank is waited for, the ends of processes, a busy machine


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_that_is_lost_is_named_by_the_other_which_ends_in_time(tmp_path, warm, undisturbed_two, tell, number):
    output = tmp_path / "run"
    keys = KEYS | {"DISTRIBUTED.timeout_s": TIMEOUT}
    ranks = launch_two(warm, output, keys)
    try:
        while logged(output) < AT:
            assert [rank.code for rank in ranks] == [None, None], ranks[0].text + ranks[1].text
            time.sleep(0.01)
        ranks[1].kill(number)
        hit = time.monotonic()
        code = ranks[0].wait(TIMEOUT + SPARE + 30)
        seconds = time.monotonic() - hit
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.kill()
            rank.wait()
    assert code == 4, ranks[0].text
    (error,) = [line for line in ranks[0].text.splitlines() if line.startswith("error: ")]
    assert "rank 1" in error
    assert "Traceback" not in ranks[0].text
    assert seconds < TIMEOUT + SPARE
    assert named(output) == AT // EPOCH * EPOCH
    name = signal.Signals(number).name
    tell(f"rank 1 of 2 hit by {name}: rank 0 ended with 4 after {seconds:.1f} s (timeout {TIMEOUT} s)\n  {error}")
    if number == signal.SIGKILL:
        finished(warm, output, keys, ranks=2)
        as_undisturbed(output, undisturbed_two)


def _workers(launcher: int) -> dict[int, int]:
    """The processes of torchrun's ranks, by rank."""
    pids = {}
    for child in (Path("/proc") / str(launcher) / "task" / str(launcher) / "children").read_text().split():
        with contextlib.suppress(OSError, KeyError):
            environment = (Path("/proc") / child / "environ").read_bytes().split(b"\0")
            variables = dict(variable.split(b"=", 1) for variable in environment if b"=" in variable)
            pids[int(variables[b"RANK"])] = int(child)
    return pids


def test_elastic_restart_finishes_a_run_whose_rank_was_killed(tmp_path, undisturbed_two, tell):
    output = tmp_path / "run"
    keys = KEYS | {"DISTRIBUTED.timeout_s": TIMEOUT, "CHECKPOINT.every_minutes": 0.002}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    words = [*launcher, *command(output, keys)[1:]]
    process = start(words)
    while logged(output) < AT or len(_workers(process.pid)) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(_workers(process.pid)[1], signal.SIGKILL)
    try:
        text = process.communicate(timeout=180)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"the restart hangs:\n{process.communicate(timeout=60)[0]}")
    assert process.returncode == 0, text
    resumed = [line.split("at step ")[1].split()[0] for line in text.splitlines() if "resumed from" in line]
    assert len(resumed) == 1
    assert int(resumed[0]) >= AT - 5
    as_undisturbed(output, undisturbed_two)
    tell(
        f"torchrun --max-restarts 2: rank 1 of 2 killed at step {AT}; resumed at {resumed[0]}, finished {STEPS} steps "
        "and ended bit for bit"
    )
