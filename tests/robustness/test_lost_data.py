"""Loader processes that die and mounts that vanish, in real runs: the same weights to the bit, or one clear word."""

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from packed_sets import pixels
from processes import TINY, call, last_state
from small_data import digit, write_digits

from mim.data.batch import Note
from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.loading.retry import patient
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Stored, gone
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack
from mim.data.sources.webdataset import WebDataset
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.errors import DataLost

RUN = TINY | {"DATA.name": "folder", "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 16, "TRAIN.epochs": 12}


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return last_state(run_folder)["model"]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost") / "images"
    write_digits(folder, 64, suffix=".jpg")
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> dict[str, torch.Tensor]:
    output = images.parent / "undisturbed"
    code, text = call(output, RUN | {"DATA.path": images, "DATA.workers": 0})
    assert code == 0, text
    return weights(output)


@contextmanager
def meanwhile(run_folder: Path, mischief: Callable[[], None], lines: int = 6) -> Iterator[list[BaseException]]:
    """Does something beside a run in this process, once that has written so many lines of metrics."""
    failed: list[BaseException] = []

    def wait() -> None:
        file = run_folder / "metrics.jsonl"
        try:
            until = time.monotonic() + 60
            while not file.exists() or file.read_bytes().count(b"\n") < lines:
                assert time.monotonic() < until
                time.sleep(0.005)
            mischief()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    yield failed
    thread.join()
    assert not failed, failed


def loaders(parent: int) -> list[int]:
    """The loader processes of a process."""
    children = [
        int(word) for path in Path(f"/proc/{parent}/task").iterdir() for word in (path / "children").read_text().split()
    ]
    return [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes()]


# -------------------------------------------------------------------- a dead loader process


def test_run_whose_loader_processes_are_killed_ends_with_the_same_weights(
    images: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def kill() -> None:
        for _ in range(2):
            os.kill(loaders(os.getpid())[-1], signal.SIGKILL)
            time.sleep(0.2)

    with meanwhile(tmp_path / "run", kill):
        code, output = call(tmp_path / "run", RUN | {"DATA.path": images, "DATA.workers": 2})
    assert code == 0, output
    told = re.findall(
        r"warning: a loader process \(\d+, number \d of 2\) was ended by SIGKILL \(.*memory.*\); a new", output
    )
    assert 1 <= len(told) <= 2
    assert "Traceback" not in output
    assert same(weights(tmp_path / "run"), undisturbed)


class Deadly(Folder):
    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        if index == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_reduced(index, enough)


def test_loader_processes_that_keep_dying_are_given_up_with_the_names_of_the_samples(images: Path) -> None:
    source = Deadly("train", DataSettings(path=str(images), channels=1), val_share=0)
    data = ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    found = batches(data, [[(0, index) for index in range(start, start + 8)] for start in range(0, 64, 8)], 2, False)
    assert [next(found).indices[0] for _ in range(2)] == [0, 8]
    named = ", ".join(rf"\S+digit-0{number}\.jpg" for number in (16, 17, 18))
    with pytest.raises(
        DataLost, match=rf"3 loader .* SIGKILL .*while a batch of 8 .* the first of them {named}$"
    ) as caught:
        next(found)
    assert "\n" not in str(caught.value)
    assert list(found) == []


class Buggy(Folder):
    def read_reduced(self, index: int, need_of: NeedOf) -> NoReturn:
        raise IndexError("a bug of the user's")


def test_bug_in_a_source_of_the_users_keeps_its_type_and_traceback(images: Path) -> None:
    source = Buggy("train", DataSettings(path=str(images), channels=1))
    data = ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    with pytest.raises(IndexError, match=r"^a bug of the user's$") as caught:
        next(batches(data, [[(0, 0)]], 1, False))
    assert re.search(r'test_data_lost\.py", line \d+, in read_reduced', str(caught.value.__cause__))


# -------------------------------------------------------------------- a mount that vanishes


@pytest.mark.parametrize(("workers", "left"), [(0, "an empty folder"), (2, "nothing")])
def test_run_whose_images_vanish_and_come_back_ends_with_the_same_weights(
    images: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path, workers: int, left: str
) -> None:
    here, away = tmp_path / "mount", tmp_path / "away"
    shutil.copytree(images, here)

    def unmount() -> None:
        here.rename(away)
        if left != "nothing":
            here.mkdir()
        time.sleep(0.7)
        if left != "nothing":
            here.rmdir()
        away.rename(here)

    with meanwhile(tmp_path / "run", unmount):
        code, output = call(tmp_path / "run", RUN | {"DATA.path": here, "DATA.workers": workers})
    assert code == 0, output
    told = re.findall(
        r"warning: the images could not be read for \d\.\d s \(DATA\.path \S+mount: (.*)\); they are back", output
    )
    assert told == ["No such file or directory" if left == "nothing" else "it is empty"]
    assert "another image replaces it" not in output
    assert same(weights(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("workers", [0, 2])
def test_run_whose_images_stay_away_says_so_and_ends(images: Path, tmp_path: Path, workers: int) -> None:
    here = tmp_path / "mount"
    shutil.copytree(images, here)
    keys = RUN | {"DATA.path": here, "DATA.workers": workers, "DATA.retry_s": 0.5}
    with meanwhile(tmp_path / "run", lambda: here.rename(tmp_path / "away") and None):
        code, output = call(tmp_path / "run", keys)
    assert code == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    lost = f"error: the images can no longer be read: DATA.path {here}: No such file or directory. Waited 0.5 s "
    again = "Bring it back and start the same command again: the run goes on from its last checkpoint"
    assert line == f"{lost}(DATA.retry_s 0.5). {again}"
    assert "Traceback" not in output
    assert not loaders(os.getpid())


# -------------------------------------------------------------------- what is a lost place, and what a broken image


def folder(path: Path, **keys: object) -> Folder:
    return Folder("train", DataSettings(path=str(path), channels=1, retry_s=0), **{"val_share": 0, **keys})


def test_image_that_is_missing_in_a_place_that_is_there_is_a_broken_image(tmp_path: Path) -> None:
    paths = write_digits(tmp_path, 12)
    source = folder(tmp_path)
    paths[3].unlink()
    notes: list[Note] = []
    with pytest.raises(BrokenImage, match="FileNotFoundError"):
        patient(source, lambda: source.read(3), notes)
    assert notes == []
    paths[4].write_bytes(b"")
    with pytest.raises(BrokenImage, match="UnidentifiedImageError"):
        patient(source, lambda: source.read(4), notes)


def test_image_that_comes_back_between_two_looks_is_read(tmp_path: Path) -> None:
    (path,) = write_digits(tmp_path, 1)
    write_digits(tmp_path, 3, first=1)
    source, notes = folder(tmp_path), list[Note]()
    content = path.read_bytes()
    path.unlink()

    def read() -> object:
        try:
            return source.read(0)
        finally:
            path.write_bytes(content)

    assert np.array_equal(np.asarray(patient(source, read, notes)), np.asarray(digit(0)))


def lists(root: Path) -> Source:
    (root.parent / "list.txt").write_text("".join(f"{path}\n" for path in sorted(root.iterdir())))
    return folder(root.parent / "list.txt")


def links(root: Path) -> Source:
    (root.parent / "links").mkdir()
    for path in root.iterdir():
        (root.parent / "links" / path.name).symlink_to(path)
    return folder(root.parent / "links")


def shards(root: Path) -> Source:
    import tarfile

    for number, path in enumerate(sorted(root.iterdir())):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            tar.add(path, path.name)
        path.unlink()
    return WebDataset("train", DataSettings(path=f"{root}/*.tar", channels=1, retry_s=0), val_share=0)


@pytest.mark.parametrize("make", [folder, lists, links, shards])
def test_place_that_is_gone_is_named_whatever_the_source_is(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    write_digits(tmp_path / "mount", 10)
    source = make(tmp_path / "mount")
    assert source.missing() == ""
    (tmp_path / "mount").rename(tmp_path / "away")
    with pytest.raises(
        DataLost, match=r"^the images can no longer be read: DATA\.path .*No such file.*DATA\.retry_s 0"
    ):
        ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)[0, 0]
    (tmp_path / "away").rename(tmp_path / "mount")
    assert source.missing() == ""
    assert ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)[0, 0].broken == ()


def test_place_is_not_looked_for_where_it_never_was_one(tmp_path: Path) -> None:
    """A name on a hub, a list of which nothing is there."""

    class Hub(Source):
        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> torch.Tensor:
            raise BrokenImage("of a server") from ConnectionRefusedError(111, "refused")

    source = Hub("train", DataSettings(path="somebody/images"))
    assert source.missing() == ""
    with pytest.raises(BrokenImage):
        patient(source, lambda: source.read(0), [])
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert folder(tmp_path / "list.txt").missing() == ""
    assert gone(tmp_path / "nowhere") == "No such file or directory"


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.EACCES]
)
def test_place_that_answers_with_an_error_of_the_system_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What a network or FUSE mount answers when its other end is away; nothing here can mount one."""
    write_digits(tmp_path / "mount", 3)
    source, asked = folder(tmp_path / "mount"), []
    stat = os.stat

    def answer(path: object, *args: object, **keys: object) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "mount")):
            asked.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, *args, **keys)

    def read() -> NoReturn:
        raise BrokenImage("OSError") from OSError(number, os.strerror(number))

    with pytest.raises(BrokenImage):
        patient(source, read, [])
    monkeypatch.setattr(os, "stat", answer)
    with pytest.raises(DataLost, match=re.escape(f"{tmp_path / 'mount'}: {os.strerror(number)}. Waited 0.0 s")):
        patient(source, read, [])
    assert asked


def test_held_out_place_is_named_by_its_own_key(tmp_path: Path) -> None:
    write_digits(tmp_path / "data", 4)
    write_digits(tmp_path / "held", 4)
    settings = DataSettings(path=str(tmp_path / "data"), channels=1)
    source = Folder("val", settings, val_path=str(tmp_path / "held"))
    (tmp_path / "held").rename(tmp_path / "away")
    assert source.missing() == f"DATA.val_path {tmp_path / 'held'}: No such file or directory"
    assert Folder("train", settings).missing() == ""


def test_wait_of_several_processes_is_told_once(tmp_path: Path) -> None:
    write_digits(tmp_path / "mount", 24)
    source = Folder("train", DataSettings(path=str(tmp_path / "mount"), channels=1), val_share=0)
    data = ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(epoch, index) for index in range(24)] for epoch in range(40)]
    alone = list(batches(data, order, 0, False))
    found = batches(data, order, 3, False)
    made = [next(found)]
    for _ in range(2):
        (tmp_path / "mount").rename(tmp_path / "away")
        time.sleep(0.6)
        (tmp_path / "away").rename(tmp_path / "mount")
        made += [next(found) for _ in range(12)]
    made += list(found)
    notes = [note for batch in made for note in batch.notes]
    assert len(notes) == 2
    assert all("they are back, and nothing was left out" in note.text for note in notes)
    assert all(batch.broken == () for batch in made)
    assert len(made) == len(alone)
    assert all(torch.equal(one.images_BCHW, two.images_BCHW) for one, two in zip(made, alone, strict=True))


# -------------------------------------------------------------------- packed files


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write_digits(tmp_path / "files", 12)
    sources = {
        "train": folder(tmp_path / "files"),
        "val": Folder("val", folder(tmp_path / "files").settings, val_share=0),
    }
    pack(sources, tmp_path / "packed", PackSettings(), lambda done: None)
    return tmp_path / "packed"


def open_packed(path: Path) -> Packed:
    return Packed("train", DataSettings(path=str(path), channels=1, retry_s=0), val_share=0)


def test_packed_file_that_is_cut_has_broken_images_and_ends_no_process(packed: Path) -> None:
    """To touch what a mapped file lacks would be a bus error."""
    source = open_packed(packed)
    os.truncate(packed / "train.images", 6 * 1024 + 1)
    for index in range(12):
        if index < 6:
            source.read(index)
        else:
            with pytest.raises(BrokenImage, match="has become shorter"):
                source.read(index)


def test_packed_file_that_is_moved_or_removed_is_read_on(packed: Path) -> None:
    source = open_packed(packed)
    shutil.rmtree(packed)
    for index in range(12):
        assert np.array_equal(pixels(source, index)[0].numpy(), np.asarray(digit(index)))
