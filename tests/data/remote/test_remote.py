"""Data sets on a real HTTP server in another process: the same images in the same order as on a disk."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from range_server import serving
from small_data import digit, logged
from tar_shards import png, sample, write_shard, write_shards

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.remote import files as remote_files
from mim.data.settings import DataSettings
from mim.data.sources.base import Source
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack
from mim.data.sources.parquet import Parquet
from mim.data.sources.retry import RetryingSource
from mim.data.sources.webdataset import WebDataset
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.errors import DataLost

SHARDS, EACH = 4, 6
PATTERN = "digits-{000..003}.tar"


@pytest.fixture(autouse=True)
def indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices and copies of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_shards(folder, SHARDS, EACH)
    (folder / "forbidden").mkdir()
    write_shard(folder / "forbidden" / "a.tar", sample(1))
    shards = WebDataset("train", settings(folder), val_share=0)
    pack({"train": shards}, folder / "packed", PackSettings(store="pixels"), lambda count: None)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder) as url:
        yield url


def settings(path: object, retry_s: float = 0.0) -> DataSettings:
    return DataSettings(path=str(path), channels=1, retry_s=retry_s)


def shards(path: object, split: str = "train", retry_s: float = 0.0, **keys: object) -> WebDataset:
    return WebDataset(split, settings(path, retry_s), **{"val_share": 0, **keys})


def same(one: Source, two: Source) -> bool:
    """Whether two sources have the same images and labels in the same order."""
    assert len(one) == len(two) > 0
    one.prefetch(range(0, len(one), 2))
    assert np.array_equal(one.labels, two.labels)
    return all(np.array_equal(np.asarray(one.read(index)), np.asarray(two.read(index))) for index in range(len(one)))


# -------------------------------------------------------------------- the same images


@pytest.mark.parametrize("cache_gib", [1.0, 45_000 / 2**30, 0.0])  # all, two of four shards, none
def test_remote_shards_are_those_of_the_disk_whatever_fits_into_the_cache(
    folder: Path, address: str, cache_gib: float, tmp_path: Path
) -> None:
    here = shards(folder / PATTERN)
    for pattern in (f"{address}/{PATTERN}", f"{address}/*.tar", address):
        there = shards(pattern, cache_gib=cache_gib, cache=str(tmp_path / "copies"))
        assert same(there, here)
        assert there.describe(7) == f"{address}/digits-001.tar/0007.png"
    copies = [path for path in (tmp_path / "copies").iterdir() if len(path.name) == 32]
    assert sum(path.stat().st_size for path in copies) <= cache_gib * 2**30
    assert len(copies) == (4 if cache_gib == 1 else 2 if cache_gib else 0)


def test_remote_shards_hold_out_the_same_images(folder: Path, address: str) -> None:
    for split in ("train", "val"):
        here, there = (shards(f"{root}/{PATTERN}", split, val_share=0.3) for root in (folder, address))
        assert same(there, here)


def test_remote_shards_with_copies_and_indices_are_read_without_the_server(folder: Path) -> None:
    with serving(folder) as url:
        shards(f"{url}/{PATTERN}")
        again = shards(f"{url}/{PATTERN}")
    assert same(again, shards(folder / PATTERN))


def test_remote_packed_set_is_that_of_the_disk(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "PIECE_BYTES", 1000)
    here = Packed("train", settings(folder / "packed"), val_share=0.2)
    for cache_gib in (1.0, 10_000 / 2**30, 0.0):
        keys = {"val_share": 0.2, "cache_gib": cache_gib, "cache": str(tmp_path / f"copies{cache_gib}")}
        there = Packed("train", settings(f"{address}/packed"), **keys)
        assert same(there, here)
        assert there.describe(3) == here.describe(3)


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_remote_parquet_files_are_those_of_the_disk(cache_gib: float, tmp_path: Path) -> None:
    (tmp_path / "store" / "below").mkdir(parents=True)
    for name, start in (("a", 0), ("below/b", 9)):
        numbers = range(start, start + 9)
        table = pyarrow.table(
            {"image": [png(number) for number in numbers], "label": [number % 7 for number in numbers]}
        )
        parquet.write_table(table, tmp_path / "store" / f"{name}.parquet", row_group_size=4)
    with serving(tmp_path / "store") as url:
        for address in (f"{url}/a.parquet", f"{url}/*.parquet", f"file://{tmp_path}/store"):
            path = address.replace(url, str(tmp_path / "store")).replace("file://", "")
            keys = {"label_column": "label", "val_share": 0.2}
            here = Parquet("train", settings(path), **keys)
            there = Parquet("train", settings(address), **keys, cache_gib=cache_gib, cache=str(tmp_path / "copies"))
            assert same(there, here)
            assert there.describe(0).startswith(address[:7])
    with pytest.raises(DataLost):
        Parquet("train", settings(f"{url}/a.parquet"), cache=str(tmp_path / "others"))


def test_remote_pieces_are_copied_in_the_background_and_joined(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim.data.remote.packed.PIECE_BYTES", 1000)  # less than an image and a half
    here = Packed("train", settings(folder / "packed"), val_share=0)
    there = Packed("train", settings(f"{address}/packed"), val_share=0, cache=str(tmp_path / "copies"))
    assert same(there, here)
    remote = there._files.remote
    pieces = remote.pieces(0)
    deadline = time.monotonic() + 30
    while not all((remote.cache.folder / piece.key).exists() for piece in pieces):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr(type(remote.store), "read", None)
    assert same(there, here)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_remote_protocols_of_fsspec(folder: Path, protocol: str, tmp_path: Path) -> None:
    import fsspec

    root = "memory://bucket" if protocol == "memory" else f"file://{folder}"
    if protocol == "memory":
        fsspec.filesystem("memory").put(f"{folder}/*.tar", "/bucket/")
    assert same(shards(f"{root}/{PATTERN}", cache=str(tmp_path)), shards(folder / PATTERN))
    assert same(shards(f"{root}/*.tar", cache_gib=0), shards(folder / PATTERN))


def test_remote_loader_processes_read_the_same(folder: Path, address: str) -> None:
    order = [[(0, 3), (0, 11), (0, 23)], [(1, 5), (1, 0)], [(1, 7)]]
    results = []
    for root, keys, workers in ((folder, {}, 0), (address, {"cache_gib": 0}, 2), (address, {}, 2)):
        images = shards(f"{root}/{PATTERN}", **keys)
        images.read(0)
        crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
        results.append(list(batches(crops, order, workers, False)))
    for other in results[1:]:
        pairs = zip(results[0], other, strict=True)
        assert all(torch.equal(one.images_BCHW, two.images_BCHW) and one.indices == two.indices for one, two in pairs)


def test_remote_shard_that_is_another_is_read_again(folder: Path, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", sample(1, cls=b"1"))
    with serving(tmp_path) as url:
        assert shards(f"{url}/a.tar").labels.tolist() == [1]
        write_shard(path, sample(2, cls=b"2"))
        images = shards(f"{url}/a.tar")
    assert images.labels.tolist() == [2]
    assert np.array_equal(np.asarray(images.read(0)), np.asarray(digit(2)))


# -------------------------------------------------------------------- a store that fails


def test_remote_answers_that_fail_are_asked_for_again_and_no_image_is_replaced(folder: Path, tmp_path: Path) -> None:
    with serving(folder, "--fail-every", "2", log=tmp_path / "log") as url:
        there = RetryingSource(shards(f"{url}/{PATTERN}", retry_s=20, cache_gib=0))
        here = shards(folder / PATTERN)
        for index in range(0, len(here), 3):
            assert np.array_equal(np.asarray(there.read(index)), np.asarray(here.read(index)))
    assert (tmp_path / "log").read_text().count(" 503") > 5


def test_remote_store_that_goes_is_waited_for_and_one_that_stays_away_ends_the_run(folder: Path) -> None:
    with serving(folder) as url:
        images = shards(f"{url}/{PATTERN}", retry_s=0.5, cache_gib=0)
        images.read(0)
        port = int(url.rsplit(":", 1)[1])
    began = time.monotonic()
    with pytest.raises(DataLost, match=r"digits-00\d\.tar: .*Waited .* s \(DATA\.retry_s"):
        RetryingSource(images).read(5)
    assert 0.5 <= time.monotonic() - began < 10
    with serving(folder, port=port), logged() as lines:
        images._remote.store.retry_s = 20
        assert np.array_equal(np.asarray(RetryingSource(images).read(5)), np.asarray(digit(5)))
    assert not any("left out" in line for line in lines)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("{}/none.tar", r"DATA\.path: \S*/none\.tar does not exist .*: name a bucket and a path that exist"),
        ("{}/forbidden/a.tar", r"DATA\.path: \S*/forbidden/a\.tar: access is denied .*403.*: give credentials"),
        ("{}/none-*.tar", r"there are no such \.tar files"),
        ("s4://bucket/a.tar", "s4://bucket/a.tar: Protocol not known: s4.*: use s3://, gs://, hf://, https://"),
        ("{}/digits-000.tar::/data/a.tar", "all files must lie in one object store, or all on disks"),
    ],
)
def test_remote_addresses_that_cannot_be_read_are_named(path: str, text: str, address: str) -> None:
    with pytest.raises(ValueError, match=text):
        shards(path.format(address))


def test_remote_addresses_are_named_without_their_secrets(folder: Path, address: str) -> None:
    signed = address.replace("//", "//user:word@") + "/digits-001.tar?signature=abc"
    images = shards(signed)
    assert same(images, shards(folder / "digits-001.tar"))
    assert images.describe(0) == f"{address}/digits-001.tar/0006.png"
    with pytest.raises(ValueError, match="does not exist") as caught:
        shards(signed.replace("001", "009"))
    assert "abc" not in str(caught.value)
    assert "word" not in str(caught.value)


def test_remote_server_that_does_not_answer_is_named_soon() -> None:
    with pytest.raises(DataLost, match=r"http://127\.0\.0\.1:1/a\.tar: .*Waited 0\.\d s"):
        shards("http://127.0.0.1:1/a.tar")


def test_remote_server_without_ranges_is_refused(folder: Path) -> None:
    with serving(folder, "--no-ranges") as url, pytest.raises(ValueError, match="without range requests"):
        shards(f"{url}/digits-000.tar", cache_gib=0).read(3)


def test_remote_store_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, address, extra in (("s3fs", "s3://b/a.tar", "s3"), ("gcsfs", "gs://b/a.tar", "gs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"{address} needs a package .*pip install 'mim-toolkit\[{extra}\]'"):
            shards(address)


def test_remote_packed_folder_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ValueError, match=r"/none/packed\.json does not exist"):
        Packed("train", settings(f"{address}/none"))


def test_remote_damaged_shard_is_named_by_its_address(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"no archive at all" * 100)
    with serving(tmp_path) as url, pytest.raises(ValueError, match=r"http://\S*/b\.tar is compressed, damaged"):
        shards(f"{url}/b.tar")


def test_remote_member_that_is_no_image_is_broken(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("a.png", b"no image"), *sample(2, "b")])
    with serving(tmp_path) as url:
        images = shards(f"{url}/a.tar")
        with pytest.raises(BrokenImage):
            images.read(0)


def test_remote_cache_of_no_size_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"DATA\.cache_gib is -1: it is a number of GiB"):
        shards(f"{address}/{PATTERN}", cache_gib=-1)


def test_remote_images_keep_few_pieces_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "OPEN", 2)
    write_shards(tmp_path, shards=6, each=1)
    with serving(tmp_path) as url:
        images = shards(f"{url}/*.tar")
        images.read(0)
        before = len(os.listdir("/proc/self/fd"))
        for index in [*range(6), 0]:
            assert np.array_equal(np.asarray(images.read(index)), np.asarray(digit(index)))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
