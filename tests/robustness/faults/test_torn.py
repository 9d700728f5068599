"""A run whose last checkpoint is damaged goes on from the one before, and ends where the undisturbed run ends."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import EPOCH, KEYS, OFTEN, STEPS, as_undisturbed, launch, logged, named
from processes import last_checkpoint

pytestmark = pytest.mark.slow


def _cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _zero_page(path: Path) -> None:
    data = path.read_bytes()
    at = len(data) // 2 // 4096 * 4096
    path.write_bytes(data[:at] + bytes(4096) + data[at + 4096 :])


def _flip_bit(path: Path) -> None:
    data = path.read_bytes()
    at = len(data) // 2
    while data[at] == 0:  # which may be padding
        at += 1
    path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])


def _newest_two(path: Path) -> None:
    _flip_bit(path)
    _cut(0.7)(path.with_name(f"step-{named(path.parents[1]) - 1}.pt"))


# what happens to the checkpoint that `last` names, and how many steps are lost
DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "the last cut by a third": (_cut(0.67), 1),
    "the last cut by its last byte": (lambda path: path.write_bytes(path.read_bytes()[:-1]), 1),
    "the last empty": (_cut(0), 1),
    "a page of zeros in the last": (_zero_page, 1),
    "a bit flipped in the last": (_flip_bit, 1),
    "the last gone": (Path.unlink, 1),
    "the last and the one before damaged": (_newest_two, 2),
    "the pointer empty": (lambda path: path.with_name("last").write_text(""), 0),
    "the pointer gone": (lambda path: path.with_name("last").unlink(), 0),
    "the pointer names what never was": (lambda path: path.with_name("last").write_text("step-7777.pt\n"), 0),
}


@pytest.fixture(scope="module")
def killed(warm, tmp_path_factory) -> Path:
    """A run killed after two thirds of its steps."""
    output = tmp_path_factory.mktemp("killed") / "run"
    process = launch(warm, output, KEYS | OFTEN)
    while logged(output) < 2 * STEPS // 3 or named(output) % EPOCH < 4:  # in the middle of an epoch
        assert process.code is None, process.text
        time.sleep(0.001)
    process.kill()
    process.wait()
    return output


@pytest.mark.parametrize("kind", DAMAGE)
def test_run_with_a_torn_checkpoint_goes_on_from_the_one_before(tmp_path, warm, undisturbed, killed, tell, kind):
    output = tmp_path / "run"
    shutil.copytree(killed, output)
    newest = last_checkpoint(output)
    step = named(output)
    harm, lost = DAMAGE[kind]
    harm(newest)

    process = launch(warm, output, KEYS)
    assert process.wait() == 0, process.text
    warnings = [line for line in process.text.splitlines() if "is taken instead" in line]
    assert all(line.startswith("warning: ") for line in warnings)
    assert len(warnings) == max(lost, 1)
    assert f"step-{step - lost}.pt is taken instead" in warnings[0]
    assert f"at step {step - lost} of {STEPS}" in process.text
    assert "is taken instead" in (output / "log.txt").read_text()
    as_undisturbed(output, undisturbed)
    tell(f"{kind}: went on from step {step - lost} of {STEPS}, not {step}; ended bit for bit")


def test_run_whose_checkpoints_are_all_torn_ends_with_their_names_and_leaves_them(tmp_path, warm, killed):
    output = tmp_path / "run"
    shutil.copytree(killed, output)
    torn = sorted((output / "checkpoints").glob("step-*.pt"))
    assert len(torn) == 3
    for path, harm in zip(torn, (_cut(0.5), _zero_page, _flip_bit), strict=True):
        harm(path)
    before = {path: path.read_bytes() for path in sorted((output / "checkpoints").iterdir())}
    metrics = (output / "metrics.jsonl").read_bytes()
    process = launch(warm, output, KEYS)
    assert process.wait() == 2, process.text
    assert "error: " in process.text
    for path in torn:
        assert str(path) in process.text
    assert "Traceback" not in process.text
    assert {path: path.read_bytes() for path in sorted((output / "checkpoints").iterdir())} == before
    assert (output / "metrics.jsonl").read_bytes() == metrics


def test_checkpoint_named_by_resume_is_never_replaced_by_another(tmp_path, warm, killed):
    output = tmp_path / "run"
    shutil.copytree(killed, output)
    newest = last_checkpoint(output)
    _flip_bit(newest)
    process = launch(warm, output, KEYS, "--resume", str(newest))
    assert process.wait() == 2, process.text
    assert f"checkpoint {newest} cannot be read: it is damaged" in process.text
    assert "instead" not in process.text
