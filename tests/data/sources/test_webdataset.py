"""WebDataset: tar shards, read in any order, are the images that were put in, in their order, with their labels."""

import gzip
import io
import json
import os
import pickle
import pickletools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import TINY, call, losses
from small_data import digit, logged, photograph
from tar_shards import png, sample, write_shard, write_shards
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources import webdataset
from mim.data.sources.base import Need
from mim.data.sources.folder import Folder
from mim.data.sources.once import listing_once
from mim.data.sources.webdataset import OPEN, WebDataset, expand_braces
from mim.data.transforms import AugmentSettings, RandomCropFlip


def full_image(height: int, width: int) -> Need:
    """All of an image is needed."""
    return Need(1.0, height)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices are remembered, of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def source(pattern: object, split: str = "train", channels: int = 1, **keys: object) -> WebDataset:
    return WebDataset(split, DataSettings(path=str(pattern), channels=channels), **{"val_share": 0, **keys})


def shows(images: WebDataset, index: int, number: int) -> bool:
    return np.array_equal(np.asarray(images.read(index)), np.asarray(digit(number)))


# -------------------------------------------------------------------- what is found


def test_webdataset_reads_samples_in_order_with_labels(tmp_path: Path) -> None:
    images = source(write_shards(tmp_path))
    assert len(images) == 15
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [number % 7 for number in range(15)]
    assert all(shows(images, number, number) for number in (14, 0, 7, 5, 4))
    assert images.describe(7) == f"{tmp_path}/digits-001.tar/0007.png"


def test_webdataset_reads_the_same_where_the_system_cannot_read_at_a_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = source(write_shards(tmp_path))
    monkeypatch.delattr(os, "pread")  # as on Windows
    assert all(shows(images, number, number) for number in range(len(images)))
    assert images._open == {}
    images.shards[0].write_bytes(b"")
    with pytest.raises(BrokenImage, match="has become shorter"):
        images.read(0)


def test_webdataset_indexed_again_is_the_same_and_reads_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_shards(tmp_path)
    first = source(pattern)
    monkeypatch.setattr(tarfile, "open", None)
    second = source(pattern)
    assert [second.describe(index) for index in range(15)] == [first.describe(index) for index in range(15)]
    assert second.labels.tolist() == first.labels.tolist()
    assert shows(second, 11, 11)


def test_webdataset_shard_that_changed_is_indexed_again(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    assert len(source(pattern)) == 15
    write_shard(tmp_path / "digits-001.tar", sample(40, cls=b"6"))
    images = source(pattern)
    assert len(images) == 11
    assert shows(images, 5, 40)


def test_webdataset_cache_that_is_damaged_or_cannot_be_written_costs_only_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_shards(tmp_path)
    source(pattern)
    files = sorted(cache.rglob("*.npz"))
    assert len(files) == 3
    files[0].write_bytes(b"half")
    files[1].write_bytes(files[1].read_bytes()[:-30])
    assert shows(source(pattern), 9, 9)
    content = bytearray(files[2].read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = 99  # a compression that nobody knows
    files[2].write_bytes(content)
    assert shows(source(pattern), 9, 9)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with logged() as lines:
        assert shows(source(pattern), 9, 9)
    assert any("is not kept" in line for line in lines)


def test_webdataset_keeps_what_belongs_together_and_passes_over_the_rest(tmp_path: Path) -> None:
    members = [
        ("README.md", b"about"),
        ("._0001.png", b"of another system"),
        ("only.cls", b"3"),
        *sample(1, "a/x", cls=b"1"),
        *sample(2, "b/x", cls=b"2"),
        ("twice.png", png(3)),
        ("twice.cls", b"3"),
        ("twice.png", png(4)),
        ("twice.cls", b"4"),
        ("many.seg.png", png(9)),
        ("many.PNG", png(5)),
        ("many.cls", b"5\n"),
        ("dotted.image.png", png(6)),
        ("dotted.cls", b"6"),
    ]
    images = source(write_shard(tmp_path / "a.tar", members))
    assert images.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert all(shows(images, number - 1, number) for number in range(1, 7))


def test_webdataset_long_names_are_read(tmp_path: Path) -> None:
    images = source(write_shard(tmp_path / "a.tar", [*sample(1, "n" * 200), *sample(2, "ü/" + "m" * 150)]))
    assert shows(images, 1, 2)
    assert images.describe(1).endswith("/ü/" + "m" * 150 + ".png")


def test_webdataset_arrays_and_jpeg_files(tmp_path: Path) -> None:
    array, file = io.BytesIO(), io.BytesIO()
    values = np.arange(5 * 6 * 12, dtype=np.uint16).reshape(5, 6, 12)
    np.save(array, values)
    images = source(write_shard(tmp_path / "a.tar", [("a.npy", array.getvalue())]), channels=12)
    assert np.array_equal(images.read(0).numpy(), values.transpose(2, 0, 1))
    photograph(64, 96).save(file, "JPEG")
    images = source(write_shard(tmp_path / "b.tar", [("b.jpg", file.getvalue())]), channels=3)
    assert images.read_reduced(0, full_image)[1] == (64, 96)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "b.jpg").write_bytes(file.getvalue())
    there = Folder("train", DataSettings(path=str(tmp_path / "files")), val_share=0)
    crop = RandomCropFlip(AugmentSettings(), (20, 20))  # so small that less than all of the file is decoded
    for epoch in range(5):
        one, two = (ImageDataset(source, crop, 0)[(epoch, 0)].image_CHW for source in (images, there))
        assert torch.equal(one, two)


# -------------------------------------------------------------------- labels


def test_webdataset_labels_of_json(tmp_path: Path) -> None:
    members = [member for number in range(4) for member in sample(number, json=json.dumps({"class": number}).encode())]
    path = write_shard(tmp_path / "a.tar", members)
    assert source(path, json_key="class").labels.tolist() == [0, 1, 2, 3]
    assert source(path, labels="none", json_key="class").labels is None
    assert source(path).labels is None
    with pytest.raises(
        ValueError, match=r"DATA\.labels json: \S*a\.tar/0000\.png has no label: it needs a \.json with label"
    ):
        source(path, labels="json")
    with pytest.raises(ValueError, match=r"DATA\.labels cls: \S*a\.tar/0000\.png has no label: it needs a \.cls"):
        source(path, labels="cls")


def test_webdataset_with_some_labels_missing_has_none_under_auto(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [*sample(1, cls=b"1"), *sample(2)])
    assert source(path).labels is None
    with pytest.raises(ValueError, match=r"0002\.png has no label"):
        source(path, labels="cls")


@pytest.mark.parametrize("content", [b"cat", b"", b"1.5"])
def test_webdataset_label_that_is_no_number_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", sample(1, cls=content))
    with pytest.raises(ValueError, match=r"a\.tar/0001\.cls holds .*: a label is a number from 0"):
        source(path)
    assert source(path, labels="none").labels is None


# -------------------------------------------------------------------- splits


def test_webdataset_val_share_splits_without_overlap_or_loss(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, each=40)
    train, val = (source(pattern, split, val_share=0.2) for split in ("train", "val"))
    names = [[images.describe(index) for index in range(len(images))] for images in (train, val)]
    everything = source(pattern)
    assert sorted(names[0] + names[1]) == [everything.describe(index) for index in range(120)]
    assert 10 <= len(val) <= 40
    assert val.labels.tolist() == [int(name[-8:-4]) % 7 for name in names[1]]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*.tar"):
        path.rename(moved / path.name)
    moved_val = source(moved, "val", val_share=0.2)
    assert [Path(moved_val.describe(index)).name for index in range(len(moved_val))] == [
        Path(name).name for name in names[1]
    ]


def test_webdataset_val_path_names_held_out_shards(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "train")
    val_shard = write_shard(tmp_path / "val" / "a.tar", sample(77, cls=b"3"))
    assert len(source(pattern, val_share=0.5, val_path=str(val_shard))) == 15
    images = source(pattern, "val", val_share=0.5, val_path=str(val_shard))
    assert images.labels.tolist() == [3]
    assert shows(images, 0, 77)


# -------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{x,y}/{1..2}", ["x/1", "x/2", "y/1", "y/2"]),
        ("{2..1}", ["2", "1"]),
        ("plain{x}.tar", ["plain{x}.tar"]),
    ],
)
def test_webdataset_braces_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_webdataset_patterns_name_the_same_shards(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path)
    shards = source(pattern).shards
    assert [shard.name for shard in shards] == ["digits-000.tar", "digits-001.tar", "digits-002.tar"]
    for other in (tmp_path, tmp_path / "*.tar", f"{tmp_path}/digits-{{000,001}}.tar::{tmp_path}/digits-002.tar"):
        assert source(other).shards == shards


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "DATA.path is empty"),
        ("{folder}/none-*.tar", "there are no such shards"),
        ("{folder}/digits-{{000..004}}.tar", r"2 of 5 shards are missing, such as \S*digits-003\.tar"),
        ("pipe:cat a.tar", "so they must be files"),
    ],
)
def test_webdataset_patterns_that_name_nothing_are_refused(pattern: str, text: str, tmp_path: Path) -> None:
    write_shards(tmp_path)
    with pytest.raises(ValueError, match=text):
        source(pattern.format(folder=tmp_path))


# -------------------------------------------------------------------- damage


def test_webdataset_shards_that_are_no_whole_tar_files_are_named(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "a.tar", [*sample(1), *sample(2)]).read_bytes()
    member = 512 + -(-len(png(1)) // 512) * 512
    for content in (
        b"",
        b"no archive at all" * 100,
        gzip.compress(good),
        good[: member + 100],  # in a header
        good[: member + 512 + 100],  # in an image
        good[:member],  # between two samples
        good[:member] + bytes([7]) * 512 + good[member + 512 :],
    ):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.tar is compressed, damaged, or no tar file"):
            source(tmp_path / "b.tar")


def test_webdataset_without_images_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [("a.txt", b"words")])
    with pytest.raises(ValueError, match=r"DATA\.path \S*a\.tar: no member of 1 shards is an image"):
        source(path)


def test_webdataset_member_that_is_no_image_is_broken(tmp_path: Path) -> None:
    images = source(write_shard(tmp_path / "a.tar", [("a.png", b"no image"), *sample(2, "b")]))
    for read in (lambda: images.read(0), lambda: images.read_reduced(0, full_image)):
        with pytest.raises(BrokenImage):
            read()
    assert shows(images, 1, 2)


def test_webdataset_shard_that_vanishes_or_shrinks_gives_broken_images(tmp_path: Path) -> None:
    images = source(write_shards(tmp_path))
    os.truncate(tmp_path / "digits-001.tar", 600)
    (tmp_path / "digits-002.tar").unlink()
    for index in (6, 12):
        with pytest.raises(BrokenImage):
            images.read(index)
    assert shows(images, 0, 0)


# -------------------------------------------------------------------- in use


def test_webdataset_copies_and_loader_processes_read_the_same(tmp_path: Path) -> None:
    images = source(write_shards(tmp_path))
    images.read(3)
    copy = pickle.loads(pickle.dumps(images))
    assert shows(copy, 12, 12)
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert [batch.indices for batch in helped] == [(3, 11), (5, 0)]
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


def test_webdataset_keeps_few_shards_open(tmp_path: Path) -> None:
    images = source(write_shards(tmp_path, shards=OPEN + 5, each=1))
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(OPEN + 5), 0]:
        assert shows(images, index, index)
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN
    del images
    assert len(os.listdir("/proc/self/fd")) <= before


def test_webdataset_trains_as_a_folder_of_the_same_images_does(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", each=12)
    (tmp_path / "images").mkdir()
    for number in range(36):
        (tmp_path / "images" / f"{number:04d}.png").write_bytes(png(number))
    folder = Folder("train", DataSettings(path=str(tmp_path / "images"), channels=1), val_share=0)
    here = source(pattern)
    assert all(torch.equal(*(pil_to_tensor(each.read(index)) for each in (folder, here))) for index in range(36))
    shared = {**TINY, "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 8}
    curves = []
    for name, path in (("folder", tmp_path / "images"), ("webdataset", pattern)):
        code, text = call(tmp_path / name, {**shared, "DATA.name": name, "DATA.path": path})
        assert code == 0, text
        curves.append(losses(tmp_path / name))
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]


def test_webdataset_shards_are_indexed_once_for_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, seen = write_shards(tmp_path), []
    index = webdataset.index_shard
    monkeypatch.setattr(webdataset, "index_shard", lambda shard, *rest: seen.append(shard.name) or index(shard, *rest))
    with listing_once():
        train, val = (source(pattern, split, val_share=0.3) for split in ("train", "val"))
    assert seen == ["digits-000.tar", "digits-001.tar", "digits-002.tar"]
    names = [images.describe(row) for images in (train, val) for row in range(len(images))]
    everything = source(pattern)
    assert sorted(names) == [everything.describe(row) for row in range(15)]


def test_webdataset_has_no_python_object_an_image(tmp_path: Path) -> None:
    counts = []
    for each in (2, 20):
        images = source(write_shards(tmp_path / str(each), each=each))
        counts.append(sum(1 for _ in pickletools.genops(pickle.dumps(images))))
    assert counts[0] == counts[1]
