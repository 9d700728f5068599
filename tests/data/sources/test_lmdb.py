"""Lmdb: the images of an LMDB file are those that were put in, by their keys, and nothing in it is run."""

import io
import os
import pickle
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from processes import TINY, call, losses
from small_data import digit

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.lmdb import Lmdb
from mim.data.transforms import AugmentSettings, RandomCropFlip


def png(number: int) -> bytes:
    file = io.BytesIO()
    digit(number).save(file, "PNG")
    return file.getvalue()


def write(path: Path, values: dict[str, bytes], folder: bool = True) -> Path:
    with lmdb.open(str(path), map_size=2**24, subdir=folder) as environment, environment.begin(write=True) as changes:
        for key, value in values.items():
            changes.put(key.encode(), value)
    return path


def digits(count: int) -> dict[str, bytes]:
    return {f"{number:04d}": png(number) for number in range(count)}


def source(path: object, split: str = "train", **keys: object) -> Lmdb:
    return Lmdb(split, DataSettings(path=str(path), channels=1), **{"val_share": 0, **keys})


def shows(images: Lmdb, index: int, number: int) -> bool:
    return np.array_equal(np.asarray(images.read(index)), np.asarray(digit(number)))


@pytest.mark.parametrize("folder", [True, False])
def test_lmdb_reads_images_in_the_order_of_their_keys(folder: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.lmdb", {"__len__": b"12", **digits(12)}, folder)
    images = source(path)
    assert len(images) == 12
    assert all(shows(images, number, number) for number in (11, 0, 7))
    assert images.read_reduced(3, None)[1] == (32, 32)  # a PNG needs no crop
    assert images.describe(7) == f"{path} key 0007"
    assert images.labels is None


def test_lmdb_prefix_chooses_keys(tmp_path: Path) -> None:
    values = {f"image-{number}": png(number) for number in range(3)}
    path = write(tmp_path / "a", {**values, "label-1": b"5", "num-samples": b"3"})
    assert shows(source(path, prefix="image-"), 2, 2)
    assert len(source(path, prefix="image-")) == 3
    with pytest.raises(ValueError, match=r"none of its 5 keys begins with DATA\.prefix 'picture-'; they are image-0"):
        source(path, prefix="picture-")


def test_lmdb_labels_of_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a", digits(4))
    labels = tmp_path / "labels.txt"
    labels.write_text("0003\tcat\n0000\tdog\n\n0001\tcat\n0002\tant\n9999\tfox\n")
    images = source(path, label_list=str(labels))
    assert (images.classes, images.labels.tolist()) == (("ant", "cat", "dog", "fox"), [2, 1, 0, 1])
    labels.write_text("0003\tcat\n0000\tdog\n0001\tcat\n002\tant\n")
    with pytest.raises(ValueError, match=r"labels\.txt has no key '0002': did you mean '002'\?"):
        source(path, label_list=str(labels))
    labels.write_text("0003 cat\n")
    with pytest.raises(ValueError, match=r"labels\.txt: line 1 has no key, tab and class"):
        source(path, label_list=str(labels))


def test_lmdb_splits_by_a_hash_of_the_key_or_by_val_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a", digits(60))
    train, val = (source(path, split, val_share=0.2) for split in ("train", "val"))  # both open in one process
    names = [[images.describe(index)[-4:] for index in range(len(images))] for images in (train, val)]
    assert sorted(names[0] + names[1]) == sorted(digits(60))
    assert 5 <= len(val) <= 20
    assert all(shows(images, 1, int(name[1])) for images, name in zip((train, val), names, strict=True))
    fewer = write(tmp_path / "b", {key: png(0) for key in names[1][::2]})
    held_out = source(fewer, "val", val_share=0.2)
    assert set(names[1]) >= {held_out.describe(index)[-4:] for index in range(len(held_out))} == set(names[1][::2])
    other = write(tmp_path / "c", {"x": png(3)})
    assert len(source(path, val_path=str(other), val_share=0.2)) == 60
    assert shows(source(path, "val", val_path=str(other)), 0, 3)


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_lmdb_pickled_values_are_broken_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    images = source(write(tmp_path / "a", {"a": pickle.dumps(Trap(trap)), "b": b"no image", "c": png(2)}))
    with pytest.raises(BrokenImage, match="a pickled value, which is not read"):
        images.read(0)
    with pytest.raises(BrokenImage):
        images.read(1)
    assert shows(images, 2, 2)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # so it is one


def test_lmdb_other_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").write_bytes(b"no LMDB" * 3000)
    write(tmp_path / "half", digits(40), folder=False)
    os.truncate(tmp_path / "half", 20_000)
    for name, text in (
        ("none", "does not exist"),
        ("empty", "cannot be opened"),
        ("other", "cannot be opened: InvalidError"),
        ("half", "cannot be opened: BrokenImage: the file is incomplete: 20,000 of"),
    ):
        with pytest.raises(ValueError, match=rf"DATA\.path \S*{name} {text}"):
            source(tmp_path / name)
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        source("")


def test_lmdb_without_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", digits(2))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[lmdb\]'"):
        source(path)


def test_lmdb_that_vanishes_or_shrinks_gives_broken_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a", digits(40))
    images = source(path)
    path.rename(tmp_path / "away")
    with pytest.raises(BrokenImage) as caught:
        images.read(0)
    assert isinstance(caught.value.__cause__, OSError)
    assert images.missing() == f"DATA.path {path}: No such file or directory"
    (tmp_path / "away").rename(path)
    assert shows(images, 39, 39)
    os.truncate(path / "data.mdb", 20_000)
    with pytest.raises(BrokenImage, match="the file is incomplete"):
        images.read(39)


def test_lmdb_copies_and_workers_read_the_same(tmp_path: Path) -> None:
    images = source(write(tmp_path / "a", digits(15)))
    images.read(3)  # opened before the workers start
    assert shows(pickle.loads(pickle.dumps(images)), 12, 12)
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 1), (2, 7)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


@pytest.mark.slow
def test_lmdb_pretrains_with_workers(tmp_path: Path) -> None:
    path = write(tmp_path / "a", digits(48))
    curves = []
    for workers in (0, 2):
        keys = {"DATA.name": "lmdb", "DATA.path": path, "DATA.batch_size": 8, "TRAIN.batch": 8, "DATA.workers": workers}
        code, text = call(tmp_path / f"run{workers}", {**TINY, **keys})
        assert code == 0, text
        curves.append(losses(tmp_path / f"run{workers}"))
    assert curves[0] == curves[1]
    assert curves[0]
