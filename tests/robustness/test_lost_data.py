"""Dataloader workers that die and mounts that vanish, in real runs: the same weights to the bit, or a clear error."""

import errno
import multiprocessing
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
from small_data import digit, logged, write_digits

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Stored, unreachable
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack
from mim.data.sources.retry import RetryingSource
from mim.data.sources.webdataset import WebDataset
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.errors import DataLost
from mim.model import MaskedImageModel

RUN = TINY | {"DATA.name": "folder", "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 16, "TRAIN.epochs": 6}


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


def workers() -> list[int]:
    """The dataloader workers of this process."""
    return [process.pid for process in multiprocessing.active_children()]


# -------------------------------------------------------------------- a dead worker


@pytest.mark.parametrize("moment", [pytest.param("reading", marks=pytest.mark.slow), "forward"])
def test_run_whose_worker_is_killed_ends_clearly_and_resumes_to_the_same_weights(
    images: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the main thread is in a forward pass when it hears of the death."""
    keys = RUN | {"DATA.path": images, "DATA.workers": 2}
    if moment == "forward":
        forward, calls = MaskedImageModel.forward, []

        def killing(self: MaskedImageModel, *args: object, **kwargs: object) -> object:
            calls.append(None)
            if self.training and len(calls) == 20:
                (victim, _) = workers()
                os.kill(victim, signal.SIGKILL)
                while Path(f"/proc/{victim}/cmdline").read_bytes():
                    time.sleep(0.01)
            return forward(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(MaskedImageModel, "forward", killing)
            code, output = call(tmp_path / "run", keys)
    else:
        with meanwhile(tmp_path / "run", lambda: os.kill(workers()[-1], signal.SIGKILL)):
            code, output = call(tmp_path / "run", keys)
    assert code == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(r"dataloader worker \d \(process \d+\) was ended by SIGKILL \(.*memory", line)
    assert re.search(r"\d+ images, such as \S+digit-\d+\.jpg", line)
    assert "same command again" in line
    assert "Traceback" not in output
    assert not workers()
    code, output = call(tmp_path / "run", keys)
    assert code == 0, output
    assert "resumed from" in output
    assert same(weights(tmp_path / "run"), undisturbed)


class Buggy(Folder):
    def read_reduced(self, index: int, need_of: NeedOf) -> NoReturn:
        raise IndexError("a bug of the user's")


def test_bug_in_a_source_of_the_users_keeps_its_type_and_traceback(images: Path) -> None:
    source = Buggy("train", DataSettings(path=str(images), channels=1))
    data = ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    with pytest.raises(IndexError, match="a bug of the user's") as caught:
        next(batches(data, [[(0, 0)]], 1))
    assert re.search(r'test_lost_data\.py", line \d+, in read_reduced', caught.value.__notes__[0])


# -------------------------------------------------------------------- a mount that vanishes


@pytest.mark.parametrize(
    ("workers", "left"), [pytest.param(0, "an empty folder", marks=pytest.mark.slow), (2, "nothing")]
)
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
    reasons = re.findall(
        r"warning: the images could not be read for \d\.\d s \(DATA\.path \S+mount: (.*)\); they are back", output
    )
    assert reasons == ["No such file or directory" if left == "nothing" else "it is empty"]
    assert "another image replaces it" not in output
    assert same(weights(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_run_whose_images_stay_away_says_so_and_ends(images: Path, tmp_path: Path, workers: int) -> None:
    here = tmp_path / "mount"
    shutil.copytree(images, here)
    keys = RUN | {"DATA.path": here, "DATA.workers": workers, "DATA.retry_s": 0.5}
    with meanwhile(tmp_path / "run", lambda: here.rename(tmp_path / "away") and None):
        code, output = call(tmp_path / "run", keys)
    assert code == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    for name in (
        f"DATA.path {here}",
        "No such file or directory",
        "DATA.retry_s 0.5",
        "same command",
        "last checkpoint",
    ):
        assert name in line
    assert "Traceback" not in output
    assert not multiprocessing.active_children()


# -------------------------------------------------------------------- what is a lost place, and what a broken image


def folder(path: Path, **keys: object) -> Folder:
    return Folder("train", DataSettings(path=str(path), channels=1, retry_s=0), **{"val_share": 0, **keys})


def test_image_that_is_missing_in_a_place_that_is_there_is_a_broken_image(tmp_path: Path) -> None:
    paths = write_digits(tmp_path, 12)
    source = folder(tmp_path)
    paths[3].unlink()
    with pytest.raises(BrokenImage, match="FileNotFoundError"):
        RetryingSource(source).read(3)
    paths[4].write_bytes(b"")
    with pytest.raises(BrokenImage, match="UnidentifiedImageError"):
        RetryingSource(source).read(4)


def test_image_that_comes_back_between_two_looks_is_read(tmp_path: Path) -> None:
    (path,) = write_digits(tmp_path, 1)
    write_digits(tmp_path, 3, first=1)
    content = path.read_bytes()

    class Returning(Folder):
        name = "returning"

        def read(self, index: int) -> Stored:
            try:
                return super().read(index)
            finally:
                path.write_bytes(content)

    source = Returning("train", DataSettings(path=str(tmp_path), channels=1, retry_s=0), val_share=0)
    path.unlink()
    assert np.array_equal(np.asarray(RetryingSource(source).read(0)), np.asarray(digit(0)))


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


@pytest.mark.parametrize("build", [folder, lists, links, shards])
def test_place_that_is_gone_is_named_whatever_the_source_is(tmp_path: Path, build: Callable[[Path], Source]) -> None:
    write_digits(tmp_path / "mount", 10)
    source = build(tmp_path / "mount")
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
        RetryingSource(source).read(0)
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert folder(tmp_path / "list.txt").missing() == ""
    assert unreachable(tmp_path / "nowhere") == "No such file or directory"


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV, errno.EACCES]
)
def test_place_that_answers_with_an_error_of_the_system_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What a network or FUSE mount answers when its other end is away; nothing here can mount one."""
    write_digits(tmp_path / "mount", 3)
    source, paths, stat = folder(tmp_path / "mount"), [], os.stat

    def answer(path: object, *args: object, **keys: object) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "mount")):
            paths.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, *args, **keys)

    def read(index: int) -> NoReturn:
        raise BrokenImage("OSError") from OSError(number, os.strerror(number))

    monkeypatch.setattr(source, "read", read)
    with pytest.raises(BrokenImage):
        RetryingSource(source).read(0)
    monkeypatch.setattr(os, "stat", answer)
    with pytest.raises(DataLost, match=re.escape(f"{tmp_path / 'mount'}: {os.strerror(number)}. Waited 0.0 s")):
        RetryingSource(source).read(0)
    assert paths


def test_held_out_place_is_named_by_its_own_key(tmp_path: Path) -> None:
    write_digits(tmp_path / "data", 4)
    write_digits(tmp_path / "held", 4)
    settings = DataSettings(path=str(tmp_path / "data"), channels=1)
    source = Folder("val", settings, val_path=str(tmp_path / "held"))
    (tmp_path / "held").rename(tmp_path / "away")
    assert source.missing() == f"DATA.val_path {tmp_path / 'held'}: No such file or directory"
    assert Folder("train", settings).missing() == ""


@pytest.mark.slow
def test_outage_is_logged_once_though_several_workers_wait(tmp_path: Path) -> None:
    write_digits(tmp_path / "mount", 24)
    source = Folder("train", DataSettings(path=str(tmp_path / "mount"), channels=1), val_share=0)
    data = ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(epoch, index) for index in range(24)] for epoch in range(40)]
    alone = list(batches(data, order, 0))
    with logged() as messages:
        loading = batches(data, order, 3)
        shared = [next(loading)]
        for _ in range(2):
            (tmp_path / "mount").rename(tmp_path / "away")
            time.sleep(0.6)
            (tmp_path / "away").rename(tmp_path / "mount")
            shared += [next(loading) for _ in range(12)]
        shared += list(loading)
    assert len(messages) == 2
    assert all("they are back, and nothing was left out" in message for message in messages)
    assert all(batch.broken == () for batch in shared)
    assert len(shared) == len(alone)
    assert all(torch.equal(one.images_BCHW, two.images_BCHW) for one, two in zip(shared, alone, strict=True))


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
