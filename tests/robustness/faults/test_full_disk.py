"""A disk that fills up stops the run with one clear line and its last checkpoint whole; with space again it goes on.

The disks are tmpfs of some pages, mounted over the part of the run folder that shall be full.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from interrupted import ASYNCHRONOUS, KEYS, OFTEN, STEPS, as_undisturbed, launch, logged, named
from processes import last_checkpoint

from mim.engine import checkpoint

pytestmark = pytest.mark.slow
REASON = "No space left on device"
ROOM = 64 << 20


def _mount(*options: str, at: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(at)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _may_mount(folder: Path) -> bool:
    if not _mount("size=64k", at=folder):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    assert _mount(f"size={size}", at=folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disks(tmp_path, request) -> bool:
    """Whether this process may mount; where not, the test is run by one that may, which has passed then."""
    if _may_mount(tmp_path):
        return True
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("neither this user nor a user namespace of its own may mount a tmpfs")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", request.node.nodeid]
    done = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True, cwd=request.config.rootpath)
    assert done.returncode == 0, done.stdout
    return False


# what of the run folder is on the small disk, how large that is, in KiB and in checkpoints, the file that the message
# names, and keys of the run
DISKS: dict[str, tuple[str, float, float, str, Mapping[str, object]]] = {
    "metrics": ("", 40, 0, "", OFTEN),
    "a picture": ("reconstructions", 4, 0, "reconstructions/step-", {"EVALUATE.reconstructions": 4}),
    "a checkpoint": ("checkpoints", 0, 3.5, "checkpoints/step-", OFTEN),
    "a checkpoint in the background": ("checkpoints", 0, 3.5, "checkpoints/step-", OFTEN | ASYNCHRONOUS),
    "the whole folder": ("", 60, 4, "", {"LOG.tensorboard": True, "EVALUATE.reconstructions": 4, **OFTEN}),
}


def test_full_disk_of_a_tracker_turns_it_off_and_the_run_ends_as_undisturbed(tmp_path, disks, warm, undisturbed):
    if not disks:
        return
    output = tmp_path / "run"
    with _disk(output, ROOM), _disk(output / "tensorboard", 16 * 1024):
        process = launch(warm, output, KEYS | {"LOG.tensorboard": True})
        assert process.wait() == 0, process.text
        assert process.text.count("LOG.trackers tensorboard failed and is off; the run goes on") == 1
        assert REASON in process.text
        as_undisturbed(output, undisturbed)


@pytest.mark.parametrize("part", DISKS)
def test_run_on_a_full_disk_stops_with_its_last_checkpoint_and_goes_on_with_space(
    tmp_path, disks, warm, undisturbed, tell, part
):
    if not disks:
        return
    inside, kib, times, expected, keys = DISKS[part]
    size = int(1024 * kib + times * last_checkpoint(undisturbed).stat().st_size)
    output = tmp_path / "run"
    checkpoints = output / "checkpoints"
    with _disk(output, ROOM if inside else size), _disk(output / inside if inside else tmp_path / "other", size):
        if part == "metrics":
            checkpoints.symlink_to(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").mkdir()
        process = launch(warm, output, KEYS | keys)
        assert process.wait() == 3, process.text
        assert "Traceback" not in process.text
        assert "Logging error" not in process.text
        errors = [line for line in process.text.splitlines() if REASON in line and line.startswith("error: ")]
        assert len(errors) == 1, process.text
        assert f"{output}/{expected}" in errors[0]
        at, step = logged(output), named(output)
        if step:
            assert checkpoint.newest_intact(checkpoints)[1]["step"] == step
        retry = launch(warm, output, KEYS | keys)
        assert retry.wait() == 3, retry.text
        assert "Traceback" not in retry.text
        for disk in (output, output / inside):
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)
        process = launch(warm, output, KEYS | keys)
        assert process.wait() == 0, process.text
        assert ("resumed from" in process.text) == bool(step)
        as_undisturbed(output, undisturbed)
    file = errors[0].removeprefix(f"error: {output}/").split(":")[0]
    tell(
        f"disk of {size >> 10} KiB for {part} full at step {at}, told of {file}: exit 3; resumed at step {step} of "
        f"{STEPS} and ended bit for bit"
    )
