"""A run asked to end writes a checkpoint of the step in hand and ends with 75; the same command finishes it."""

import os
import signal
import time

import pytest
from interrupted import ASYNCHRONOUS, KEYS, STEPS, as_undisturbed, finished, launch, logged, named
from processes import start, torchrun

pytestmark = pytest.mark.slow
LATE = 31  # steps after which the signal is sent: in the middle of an epoch, far from any checkpoint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(("workers", "background"), [(0, False), (2, False), (2, True)])
def test_run_asked_to_end_writes_a_checkpoint_and_goes_on_bit_for_bit(
    tmp_path, warm, undisturbed, tell, number, workers, background
):
    """Where there are dataloader workers the signal goes to all of the group, as a terminal and a scheduler send it."""
    keys = KEYS | {"DATA.workers": workers} | (ASYNCHRONOUS if background else {})
    output = tmp_path / "run"
    process = launch(warm, output, keys)
    _reaches(output, LATE, lambda: process.code is None)
    at = logged(output)
    if workers:
        os.killpg(process.pid, number)
    else:
        process.kill(number)
    start_s = time.monotonic()
    assert process.wait(20) == 75, process.text
    seconds = time.monotonic() - start_s
    assert "Traceback" not in process.text
    assert named(output) == logged(output) >= at
    step = named(output)
    assert step - at < 15
    finished(warm, output, keys)
    as_undisturbed(output, undisturbed)
    name = signal.Signals(number).name
    tell(
        f"{name}, {workers} dataloader workers, after step {at}: exit 75 within {seconds:.1f} s, with a checkpoint of "
        f"step {step} of {STEPS}; ended bit for bit"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_torchrun_asked_to_end_writes_a_checkpoint_and_goes_on_bit_for_bit(
    tmp_path, warm, undisturbed_two, tell, number
):
    output, undisturbed = tmp_path / "run", undisturbed_two
    words = torchrun(2, output, KEYS)
    words.insert(words.index("torch.distributed.run") + 1, "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    process = start(words)
    _reaches(output, LATE, lambda: process.poll() is None)
    at = logged(output)
    process.send_signal(number)
    text = process.communicate(timeout=60)[0]
    assert named(output) == logged(output) >= at, text
    step = named(output)
    assert step - at < 15, text
    finished(warm, output, KEYS, ranks=2)
    assert f"at step {step} of {STEPS}" in (output / "log.txt").read_text()
    as_undisturbed(output, undisturbed)
    name = signal.Signals(number).name
    tell(f"{name} to torchrun of two ranks at step {at}: checkpoint of step {step} of {STEPS}; ended bit for bit")


def _reaches(output, step: int, lives) -> None:
    deadline = time.monotonic() + 120
    while logged(output) < step:
        assert lives()
        assert time.monotonic() < deadline
        time.sleep(0.002)
