"""Parquet: files that pyarrow and datasets write are read as the images they hold, a row group at a time."""

import os
import pickle
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import TINY, call, losses
from small_data import digit, logged, write_digits

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources import parquet_files
from mim.data.sources.parquet import Parquet
from mim.data.transforms import AugmentSettings, RandomCropFlip

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def png(number: int) -> bytes:
    content = BytesIO()
    digit(number).save(content, "PNG")
    return content.getvalue()


def write(path: Path, numbers: range, kind: str = "bytes", labels: list | None = None, rows: int = 5) -> Path:
    """Digits in row groups of 5."""
    path.parent.mkdir(exist_ok=True, parents=True)
    contents: list = [png(number) for number in numbers]
    if kind == "struct":
        contents = [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(contents)]
    values = pyarrow.array(contents, pyarrow.large_binary()) if kind == "large" else contents
    columns = {"id": list(numbers), "image": values} | ({"label": labels} if labels is not None else {})
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def source(path: object, split: str = "train", **keys: object) -> Parquet:
    return Parquet(split, DataSettings(path=str(path), channels=1), **{"val_share": 0, **keys})


def shows(images: Parquet, index: int, number: int) -> bool:
    return np.array_equal(np.asarray(images.read(index)), np.asarray(digit(number)))


@pytest.mark.parametrize("kind", ["bytes", "large", "struct"])
@pytest.mark.parametrize("kept", [2**26, 0], ids=["groups kept", "groups streamed"])
def test_parquet_rows_are_the_images_that_were_written(
    tmp_path: Path, kind: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "MOST_KEPT", kept)
    monkeypatch.setattr(parquet_files, "STREAMED", 2)
    write(tmp_path / "b.parquet", range(12, 20), kind)
    write(tmp_path / "a.parquet", range(12), kind)
    write(tmp_path / "deeper" / "c.parquet", range(0), kind)
    images = source(tmp_path)
    assert len(images) == 20
    assert all(shows(images, index, index) for index in [19, 0, 5, 4, 11, 12, *range(20)])
    assert images.describe(13) == f"{tmp_path / 'b.parquet'} row 1"
    assert len(source(tmp_path / "b.parquet")) == 8
    assert len(source(tmp_path / "[a-b].parquet")) == 20


def test_parquet_reads_one_row_group_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", range(20))
    images = source(path)
    start = parquet.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    for index in (0, 9, 15, 19):
        assert shows(images, index, index)
    with pytest.raises(BrokenImage):
        images.read(12)
    assert shows(images, 16, 16)


def test_parquet_that_the_package_datasets_writes_has_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    content = {"image": [digit(number) for number in range(6)], "label": [number % 3 for number in range(6)]}
    data = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image())
    data.cast_column("label", datasets.ClassLabel(names=["low", "middle", "high"])).to_parquet(tmp_path / "a.parquet")
    images = source(tmp_path, label_column="label")
    assert images.classes == ("low", "middle", "high")
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert shows(images, 4, 4)


def test_parquet_labels_are_numbers_or_texts(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", range(4), labels=["dog", "cat", "dog", "bee"])
    val = write(tmp_path / "val.parquet", range(2), labels=["dog", "bee"])
    keys = {"label_column": "label", "val_path": str(val)}
    assert source(train, **keys).classes == source(train, "val", **keys).classes == ("bee", "cat", "dog")
    assert source(train, "val", **keys).labels.tolist() == [2, 0]
    numbers = source(write(tmp_path / "n.parquet", range(3), labels=[2, 0, 1]), label_column="label")
    assert (numbers.labels.tolist(), numbers.classes) == ([2, 0, 1], ())
    assert source(train).labels is None
    for labels, text in (
        ([1, -1], r"goes from -1 to 1: classes are numbers from 0"),
        ([0.5, 1.5], r"holds float64: whole numbers from 0 and texts"),
        (["a", None], r"holds rows without a text"),
    ):
        with pytest.raises(ValueError, match=rf"DATA\.label_column label {text}"):
            source(write(tmp_path / "x.parquet", range(2), labels=labels), label_column="label")
    write(val, range(2), labels=["dog", "cow"])
    with pytest.raises(ValueError, match="has the label 'cow', which no training image has"):
        source(train, "val", **keys)


def test_parquet_holds_out_a_share_by_file_and_row(tmp_path: Path) -> None:
    for name, numbers in (("a", range(40)), ("b", range(40, 60))):
        write(tmp_path / f"{name}.parquet", numbers, labels=list(numbers))
    keys = {"val_share": 0.2, "label_column": "label"}
    train, val = (source(tmp_path, split, **keys) for split in ("train", "val"))
    assert sorted([*train.labels.tolist(), *val.labels.tolist()]) == list(range(60))
    assert 3 <= len(val) <= 25
    assert shows(val, 1, val.labels[1])
    before = set(val.labels.tolist())
    (tmp_path / "a.parquet").unlink()
    assert set(source(tmp_path, "val", **keys).labels.tolist()) == {label for label in before if label >= 40}


def test_parquet_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", range(3))
    (tmp_path / "empty").mkdir()
    for value in (tmp_path / "empty", tmp_path / "none", tmp_path / "b*.parquet"):
        with pytest.raises(ValueError, match=r"DATA\.path .*: there is no such \.parquet file"):
            source(value)
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        source("")
    with pytest.raises(ValueError, match=r"DATA\.image_column img is no column of .*did you mean 'image'"):
        source(path, image_column="img")
    with pytest.raises(ValueError, match=r"DATA\.image_column id of .* holds int64: encoded images are read"):
        source(path, image_column="id")
    with pytest.raises(ValueError, match=r"DATA\.label_column x is no column of .*: .*, or ''"):
        source(path, label_column="x")
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read as Parquet"):
        source(tmp_path)


def test_parquet_rows_without_an_image_are_broken(tmp_path: Path) -> None:
    rows = [
        {"bytes": png(3), "path": None},
        {"bytes": None, "path": "a.png"},
        None,
        {"bytes": b"no image", "path": None},
    ]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "a.parquet")
    images = source(tmp_path)
    assert shows(images, 0, 3)
    for index, text in ((1, "no bytes of an image, but the path of a file"), (2, "no bytes"), (3, "Unidentified")):
        with pytest.raises(BrokenImage, match=text):
            images.read(index)


def test_parquet_that_vanishes_or_shrinks_gives_broken_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "a.parquet", range(20))
    images = source(path)
    path.rename(tmp_path / "away")
    with pytest.raises(BrokenImage) as caught:
        images.read(0)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno
    assert images.missing() == f"DATA.path {path}: No such file or directory (1 of 1 files were tried)"
    (tmp_path / "away").rename(path)
    assert shows(images, 19, 19)
    os.truncate(path, 3000)
    with pytest.raises(BrokenImage):
        images.read(1)


def test_parquet_of_large_row_groups_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", range(20), rows=20)
    with logged() as lines:
        source(path)
    assert not lines
    monkeypatch.setattr("mim.data.sources.parquet.MOST_KEPT", 1000)
    with logged() as lines:
        source(path)
    assert "write row groups of about 100 images" in lines[0]


def test_parquet_without_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", range(2))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[parquet\]'"):
        source(path)


def test_parquet_copies_and_workers_read_the_same(tmp_path: Path) -> None:
    images = source(write(tmp_path / "a.parquet", range(15)))
    images.read(3)  # opened before the workers start
    assert shows(pickle.loads(pickle.dumps(images)), 12, 12)
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 1), (2, 7)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


@pytest.mark.slow
def test_parquet_pretrains_as_a_folder_of_the_same_images(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 24)
    path = write(tmp_path / "a.parquet", range(24))
    curves = []
    for name, place, workers in (("folder", tmp_path / "images", 0), ("parquet", path, 2)):
        keys = {"DATA.name": name, "DATA.path": place, "DATA.batch_size": 8, "TRAIN.batch": 8, "DATA.workers": workers}
        code, text = call(tmp_path / name, {**TINY, **keys, "DATA.val_share": 0})
        assert code == 0, text
        curves.append(losses(tmp_path / name))
    assert curves[0] == curves[1]
    assert curves[0]
