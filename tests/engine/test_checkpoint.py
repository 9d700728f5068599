"""Checkpoints: whole or not there, the last few kept, plain values, and strict about what they are loaded into."""

import argparse
import errno
import io
import os
import random
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder
from mim.engine.settings import CheckpointSettings
from mim.io import files
from mim.io.files import remove_abandoned, write_atomically, write_text
from mim.io.weights import CHECKPOINT_FORMAT

CONTENT = {
    "step": 7,
    "seconds": 1.5,
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "results": {"val/loss": 0.25},
    "config": "TASK: pretrain\n",
    "list": [1, 2.5, "three", None, True],
}


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -------------------------------------------------------------------- writing


def test_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, CONTENT, keep=2)
    assert path == tmp_path / "step-7.pt"
    assert checkpoint.last(tmp_path) == path
    content = checkpoint.load(path)
    assert set(content) == {"format", *CONTENT}
    for name, weight in CONTENT["model"].items():
        assert content["model"][name].dtype == weight.dtype
        assert torch.equal(content["model"][name], weight)
    assert {key: value for key, value in content.items() if key in CONTENT and key != "model"} == {
        key: value for key, value in CONTENT.items() if key != "model"
    }


def test_checkpoint_loads_under_weights_only(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, CONTENT, keep=1)
    assert torch.load(path, weights_only=True)["format"] == CHECKPOINT_FORMAT


def test_checkpoint_keep_removes_the_oldest_by_number(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert steps(tmp_path) == ["last", "step-10.pt", "step-100.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 100


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    for seconds in (1, 2):
        checkpoint.save(tmp_path, 5, {"seconds": seconds}, keep=2)
    assert steps(tmp_path) == ["last", "step-5.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["seconds"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_checkpoint_just_written_is_kept_beside_those_of_later_steps(tmp_path: Path, keep: int) -> None:
    """A run that is taken up again from an early checkpoint finds later ones in its folder."""
    for step in (20, 30):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    for step in (11, 12, 13):
        path = checkpoint.save(tmp_path, step, {"step": step}, keep=keep)
        assert path.exists()
        assert checkpoint.load(checkpoint.last(tmp_path))["step"] == step


def test_checkpoint_last_is_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.last(tmp_path) is None
    assert checkpoint.last(tmp_path / "nowhere") is None


def test_checkpoint_leftover_of_a_crash_is_ignored_and_removed_by_the_next(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"step": 1}, keep=2)
    (tmp_path / "step-2.pt.partial").write_bytes(b"half of a che")
    (tmp_path / "last.partial").write_text("step-9")
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 1
    checkpoint.save(tmp_path, 3, {"step": 3}, keep=1)
    assert steps(tmp_path) == ["last", "step-3.pt"]
    assert checkpoint.load(checkpoint.last(tmp_path))["step"] == 3


def test_checkpoint_survives_a_write_that_fails(tmp_path: Path) -> None:
    before = checkpoint.save(tmp_path, 1, {"step": 1}, keep=1)
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(tmp_path, 2, {"step": 2, "bad": lambda: None}, keep=1)
    assert checkpoint.last(tmp_path) == before
    assert checkpoint.load(before)["step"] == 1
    assert not (tmp_path / "step-2.pt").exists()


def test_checkpoint_survives_a_write_that_fails_over_the_same_step(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"seconds": 1}, keep=1)
    content = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(tmp_path, 1, {"seconds": 2, "bad": lambda: None}, keep=1)
    assert path.read_bytes() == content
    assert checkpoint.load(checkpoint.last(tmp_path))["seconds"] == 1


def test_checkpoint_settings_out_of_range_are_refused() -> None:
    for key, value in (("keep", 0), ("every_epochs", -1), ("every_minutes", -0.5)):
        with pytest.raises(ValueError, match=rf"CHECKPOINT\.{key} is {value}"):
            CheckpointSettings(**{key: value})


# -------------------------------------------------------------------- reading what is not one


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what the tests look at
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_checkpoint_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "step-1.pt")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world, this is no checkpoint\n",
        b"(this would be a mark to a pickle\n",
        b"Gee, and this a float\n",
        b"U\xff\xff and this a text\n",
        b"<html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"PK\x03\x04 not really an archive",
        bytes(range(256)) * 4,
        b"\x00" * 1000,
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x80\x04K\x05.",
    ],
)
def test_checkpoint_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_checkpoint_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = checkpoint.save(tmp_path, 1, {"model": {"weight": torch.randn(50, 50)}}, keep=1)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize(
    "content", [{"model": {"weight": torch.zeros(2)}}, torch.zeros(3), [1, 2], {"format": "another 1"}, {}]
)
def test_checkpoint_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    assert "is not a checkpoint of this toolkit" in refused(path)


def test_checkpoint_beside_a_pickled_namespace_is_read_and_that_of_another_script_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "mae.pth"
    arguments = argparse.Namespace(lr=1)
    torch.save({"format": CHECKPOINT_FORMAT, "args": arguments}, path)
    assert checkpoint.load(path)["args"] == arguments
    torch.save({"model": {}, "args": arguments}, path)
    assert "is not a checkpoint of this toolkit" in refused(path)


class Odd:
    """A value that is not plain."""


def test_checkpoint_that_holds_more_than_plain_values_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"format": CHECKPOINT_FORMAT, "odd": Odd()}, path)
    assert f"it holds {Odd.__module__}.Odd" in refused(path)


# -------------------------------------------------------------------- files that cannot be written


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the disk be full after so many bytes of a file."""

    class Full(io.FileIO):
        room = 1 << 40

        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > Full.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def limit(room: int) -> None:
        Full.room = room

    monkeypatch.setattr(files.io, "FileIO", Full)
    return limit


@pytest.mark.parametrize("room", [0, 300, 9000])
def test_checkpoint_on_a_full_disk_leaves_the_previous_one_and_names_the_file(
    tmp_path: Path, full: Callable[[int], None], room: int
) -> None:
    """torch.save itself tells of a RuntimeError: unexpected pos."""
    before = checkpoint.save(tmp_path, 1, CONTENT, keep=1)
    full(room)
    with pytest.raises(OSError, match=r"No space left on device.*step-2\.pt'") as caught:
        checkpoint.save(tmp_path, 2, {**CONTENT, "model": {"weight": torch.zeros(5000)}}, keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename) == tmp_path / "step-2.pt"
    assert steps(tmp_path) == ["last", "step-1.pt"]
    assert checkpoint.newest_intact(tmp_path)[0] == before


def test_checkpoint_is_removed_only_after_the_next_is_whole_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, CONTENT, keep=1)
    calls = []

    def spied(path: Path, missing_ok: bool = False) -> None:
        checkpoint.load(tmp_path / "step-2.pt")  # is whole
        calls.append((path.name, (tmp_path / "last").read_text().strip()))

    monkeypatch.setattr(Path, "unlink", spied)
    checkpoint.save(tmp_path, 2, CONTENT, keep=1)
    assert calls == [("step-1.pt", "step-2.pt")]


def test_write_whole_names_its_file_and_leaves_errors_of_other_files_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "nowhere" / "a.txt", "")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "a.txt", lambda file: file.write((tmp_path / "b.txt").read_bytes()))
    assert caught.value.filename == str(tmp_path / "b.txt")
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a.txt", lambda file: file.write(b"half") / 0)
    assert not list(tmp_path.iterdir())


def _writer(folder: Path) -> int:
    """The id of a process that has written half a file."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:

            def fill(file: io.BufferedWriter) -> None:
                file.write(b"half of a checkpoint" * 1000)
                os.write(write, b"!")
                time.sleep(60)

            write_atomically(folder / "step-2.pt", fill)
        finally:
            os._exit(1)
    assert os.read(read, 1) == b"!"
    for end in (read, write):
        os.close(end)
    return child


@pytest.mark.parametrize("locks", [True, False])
def test_remove_abandoned_spares_what_a_live_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:

        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(files.fcntl, "flock", refused)
    child = _writer(tmp_path)
    (aside,) = tmp_path.iterdir()
    try:
        assert remove_abandoned(tmp_path) == []
        checkpoint.save(tmp_path, 1, {"step": 1}, keep=1)
        assert aside.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not locks:
        assert remove_abandoned(tmp_path) == []
        os.utime(aside, (0, time.time() - files.ABANDONED_S - 60))
    assert remove_abandoned(tmp_path) == [aside]
    assert steps(tmp_path) == ["last", "step-1.pt"]


def test_remove_abandoned_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    target = tmp_path / "kept"
    target.write_text("mine")
    (tmp_path / "a" / "x.partial").symlink_to(target)
    (tmp_path / "a" / "folder.partial").mkdir()
    assert remove_abandoned(tmp_path / "a") == []
    assert target.read_text() == "mine"


def test_run_folder_drops_damaged_lines_of_metrics_and_keeps_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, heard: None
) -> None:
    folder = RunFolder(tmp_path)
    lines = [b'{"step": %d, "train/loss": 0.5}' % step for step in range(1, 7)]
    damaged = [lines[0], b"\x00" * 40, lines[1], b"[2]", b"7", b'{"epoch": 1}', b"\xff\xfe\x00x", lines[2], lines[5]]
    folder.metrics.write_bytes(b"\n".join(damaged) + b"\n" + lines[3][:9])
    folder.cut_metrics(4)
    assert folder.metrics.read_bytes().splitlines() == lines[:3]
    assert "6 damaged lines left out" in caplog.text
    folder.metrics.write_bytes(b"\n".join(lines[:3]))  # cut before the last line's end
    folder.cut_metrics(4)
    assert folder.metrics.read_bytes() == b"".join(line + b"\n" for line in lines[:3])


# -------------------------------------------------------------------- reading what is damaged


def same(ours: object, theirs: object) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def loads_as(path: Path, data: bytes) -> dict | None:
    path.write_bytes(data)
    try:
        return checkpoint.load(path)
    except ValueError:
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_checkpoint_with_any_damage_is_refused_or_loads_as_it_was(tmp_path: Path) -> None:
    """A bit in every byte; cuts; zeros. What is neither refused nor equal would be resumed from in silence."""
    path = checkpoint.save(tmp_path, 1, CONTENT, keep=1)
    content, draw = path.read_bytes(), random.Random(0)
    state = checkpoint.load(path)
    flipped = [
        bytes([*content[:at], content[at] ^ 1 << draw.randrange(8), *content[at + 1 :]]) for at in range(len(content))
    ]
    cuts = [content[: draw.randrange(len(content))] for _ in range(100)] + [
        content[:-length] for length in range(1, 30)
    ]
    zeros = [content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :] for at in range(0, len(content), 64)]
    count = {"refused": 0, "as it was": 0}
    for data in (*flipped, *cuts, *zeros):
        loaded = loads_as(path, data)
        assert loaded is None or same(loaded, state)
        count["refused" if loaded is None else "as it was"] += 1
    assert count["refused"] > 500 > 200 < count["as it was"]  # padding and dates hold nothing
    assert all(loads_as(path, data) is None for data in cuts)


def test_checkpoint_whose_directory_calls_a_tensor_a_folder_is_refused(tmp_path: Path) -> None:
    """PyTorch reads nothing in its place, and gives what the memory held."""
    path = checkpoint.save(tmp_path, 1, CONTENT, keep=1)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        at, members = archive.start_dir, archive.infolist()
    for member in members:
        assert content[at : at + 4] == b"PK\x01\x02"
        assert loads_as(path, bytes([*content[: at + 38], content[at + 38] ^ 16, *content[at + 39 :]])) is None
        lengths = [int.from_bytes(content[at + offset : at + offset + 2], "little") for offset in (28, 30, 32)]
        assert content[at + 46 :].startswith(member.filename.encode())
        at += 46 + sum(lengths)


# -------------------------------------------------------------------- which one to go on from


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log reaches caplog, whatever a run in this process has set."""
    monkeypatch.setattr(checkpoint.LOG, "propagate", True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(torch.arange(6.0).numpy().tobytes()) + 3
    path.write_bytes(bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]))


DAMAGE = {
    "cut": (cut, "it is incomplete or damaged"),
    "bit": (flip, "the checksum of"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read"),
    "gone": (Path.unlink, "does not exist"),
}


def three(folder: Path) -> list[Path]:
    return [checkpoint.save(folder, step, {**CONTENT, "step": step}, keep=3) for step in (8, 9, 10)]


@pytest.mark.parametrize("kind", DAMAGE)
def test_newest_intact_takes_the_one_before_a_damaged_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, heard: None, kind: str
) -> None:
    *_, before, newest = three(tmp_path)
    assert checkpoint.newest_intact(tmp_path)[0] == newest
    assert not caplog.text
    break_it, reason = DAMAGE[kind]
    break_it(newest)
    path, content = checkpoint.newest_intact(tmp_path)
    assert path == before
    assert content["step"] == 9
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(newest) in line
    assert reason in line
    assert line.endswith("step-9.pt is taken instead")


@pytest.mark.parametrize("text", ["", "step-77.pt", "/etc/passwd", "../step-3.pt", "\x00\udcff", None])
def test_newest_intact_and_last_do_without_a_pointer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, heard: None, text: str | None
) -> None:
    *_, newest = three(tmp_path)
    pointer = tmp_path / "last"
    pointer.unlink()
    if text is not None:
        pointer.write_bytes(text.encode(errors="surrogateescape"))
    assert checkpoint.last(tmp_path) == newest
    assert checkpoint.newest_intact(tmp_path)[0] == newest
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("step-10.pt is taken instead")
    assert ("step-77.pt does not exist" if text == "step-77.pt" else f"{pointer} ") in line


def test_newest_intact_prefers_steps_before_to_those_of_a_course_that_was_given_up(tmp_path: Path) -> None:
    three(tmp_path)
    write_text(tmp_path / "last", "step-9.pt\n")
    cut(tmp_path / "step-9.pt")
    assert checkpoint.newest_intact(tmp_path)[1]["step"] == 8
    cut(tmp_path / "step-8.pt")
    assert checkpoint.newest_intact(tmp_path)[1]["step"] == 10


def test_newest_intact_names_all_where_none_is_whole_and_touches_nothing(tmp_path: Path) -> None:
    paths = three(tmp_path)
    for path, kind in zip(paths, ("cut", "bit", "empty"), strict=True):
        DAMAGE[kind][0](path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds no checkpoint that is intact") as caught:
        checkpoint.newest_intact(tmp_path)
    for path, kind in zip(paths, ("cut", "bit", "empty"), strict=True):
        (line,) = [line for line in str(caught.value).splitlines() if path.name in line]
        assert DAMAGE[kind][1] in line
    assert "--resume" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_newest_intact_is_none_only_where_there_never_was_one(tmp_path: Path) -> None:
    assert checkpoint.newest_intact(tmp_path / "nowhere") is None
    (tmp_path / "step-1.pt.0a1b2c3d.partial").write_bytes(b"half")
    (tmp_path / "best.pt").write_bytes(b"")
    assert checkpoint.newest_intact(tmp_path) is None
    for text in ("step-5.pt", ""):
        (tmp_path / "last").write_text(text)
        with pytest.raises(ValueError, match=r"step-5.pt does not exist|last is empty"):
            checkpoint.newest_intact(tmp_path)


def test_checkpoint_that_is_torn_is_told_to_whoever_reads_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    *_, newest = three(tmp_path / "checkpoints")
    assert checkpoint.find(tmp_path) == newest
    cut(newest)
    assert "incomplete or damaged" in refused(checkpoint.find(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="not a run folder with a checkpoint"):
        checkpoint.find(tmp_path)


# -------------------------------------------------------------------- into a model


class Model(nn.Module):
    def __init__(self, width: int = 4, second: str = "second"):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.add_module(second, nn.BatchNorm1d(width))


def test_load_strict_loads_every_weight(tmp_path: Path) -> None:
    source, model = Model(), Model()
    checkpoint.load_strict(model, source.state_dict(), tmp_path)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_load_strict_takes_no_notice_of_what_a_model_derives_anew(tmp_path: Path) -> None:
    """Whether such a buffer stands in a file depends on the release of timm that wrote it."""
    with_index, without = Model(), Model()
    with_index.register_buffer("relative_position_index", torch.arange(3))
    checkpoint.load_strict(without, with_index.state_dict(), tmp_path)
    assert torch.equal(without.first.weight, with_index.first.weight)
    changed = {**Model().state_dict()}
    checkpoint.load_strict(with_index, changed, tmp_path)
    assert torch.equal(with_index.first.weight, changed["first.weight"])
    assert torch.equal(with_index.relative_position_index, torch.arange(3))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Model(second="other"), ["missing: second.weight", "unexpected: other.weight"]),
        (Model(width=5), ["first.weight: (5, 3) in the file, (4, 3) in the model"]),
        (nn.Linear(3, 4), ["missing: first.weight", "unexpected: weight"]),
    ],
)
def test_load_strict_names_what_differs_and_changes_nothing(source: nn.Module, expected: list[str]) -> None:
    model = Model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    differences = checkpoint.differences(model, source.state_dict())
    for line in expected:
        assert line in differences
    with pytest.raises(ValueError, match=r"a/step-3\.pt holds another model") as caught:
        checkpoint.load_strict(model, source.state_dict(), Path("a/step-3.pt"))
    assert f"({len(differences)} differences)" in str(caught.value)
    assert expected[0] in str(caught.value)
    assert "INIT.checkpoint" in str(caught.value)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_load_strict_counts_what_it_does_not_list() -> None:
    with pytest.raises(ValueError, match="and 2 more"):
        checkpoint.load_strict(Model(), {f"other-{number}": torch.zeros(1) for number in range(3)}, Path("x.pt"))


def test_differences_of_a_models_own_state_are_none() -> None:
    assert checkpoint.differences(Model(), Model().state_dict()) == []
