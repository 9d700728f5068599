"""A run that is killed with SIGKILL again and again, within saves too, ends where the undisturbed run ends."""

import random
import time
from collections import Counter

import pytest
from interrupted import ASYNCHRONOUS, KEYS, OFTEN, STEPS, as_undisturbed, finished, halves, launch, logged, named
from processes import command, start

pytestmark = pytest.mark.slow
KILLS = {"in step": 24, "in the background": 12}  # by how checkpoints are written
COLD = {"in step": 3, "in the background": 0}  # processes that import everything anew, killed at any moment of a start
LOST = {"in step": 1, "in the background": 2}  # steps at most; a checkpoint at every step


def _random_moment(draw: random.Random, output, process) -> None:
    """After some more steps, or, for one in six, before the first; and then at any moment of a step and its save."""
    if draw.random() < 1 / 6:
        time.sleep(draw.uniform(0, 0.5))
        return
    until = min(named(output) + draw.randint(1, 6), STEPS)
    while logged(output) < until and process.code is None:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.03))


def _in_a_save(draw: random.Random, output, process) -> None:
    """While a file is half written."""
    until = min(named(output) + draw.randint(1, 6), STEPS)
    left = set(halves(output))  # by the process before
    while logged(output) < until and process.code is None:
        time.sleep(0.001)
    while not set(halves(output)) - left and process.code is None:
        time.sleep(0.0002)
    time.sleep(draw.uniform(0, 0.002))


@pytest.mark.parametrize("mode", KILLS)
def test_run_killed_at_random_moments_ends_as_the_undisturbed_run(tmp_path, warm, undisturbed, tell, mode):
    draw, count, output = random.Random(7), Counter(), tmp_path / "run"
    lost, began, kills = [], time.monotonic(), KILLS[mode]
    keys = KEYS | OFTEN | (ASYNCHRONOUS if mode == "in the background" else {})
    for kill in range(kills):
        before = named(output)
        if kill < COLD[mode]:
            cold = start(command(output, keys))
            time.sleep(draw.uniform(0, 8))
            cold.kill()
            text = cold.communicate()[0]
            code, where = cold.returncode, "start"
        else:
            process = launch(warm, output, keys)
            aimed = draw.random() < 0.5
            (_in_a_save if aimed else _random_moment)(draw, output, process)
            process.kill()
            code, text, where = process.wait(), process.text, "save" if aimed else "random"
        assert code == -9, f"kill {kill}: ended before it was killed, with {code}:\n{text}"
        assert "Traceback" not in text
        count[where] += 1
        count["half written"] += bool(halves(output))
        if "resumed from" in text:
            count["resumed"] += 1
            assert f"step-{before}.pt at step {before} of {STEPS}" in text
        elif before:
            count["killed before it resumed"] += 1
        lost.append(logged(output) - named(output))
    assert "warning: " not in text
    assert max(lost) <= LOST[mode], lost
    resumed_at = named(output)
    finished(warm, output, keys)
    as_undisturbed(output, undisturbed)
    assert count["half written"] >= kills // 5
    assert count["resumed"] >= kills // 2
    tell(
        f"{kills} SIGKILLs, checkpoints {mode}: {count['random']} at random moments, {count['save']} aimed at a save, "
        f"{count['start']} in a cold start\n{count['half written']} left a file half written; {count['resumed']} "
        f"restarts resumed, {count['killed before it resumed']} were killed before\n"
        f"at most {max(lost)} step lost at once, {sum(lost)} in all; the last restart went on at step {resumed_at} of "
        f"{STEPS}\nended bit for bit where the undisturbed run did, after {time.monotonic() - began:.0f} s"
    )
