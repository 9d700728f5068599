"""HuggingFace: data sets made and saved here, read as the images they were made of; nothing is downloaded."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import TINY, call, losses
from small_data import digit, photograph, write_digits
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder
from mim.data.sources.huggingface import HuggingFace
from mim.data.transforms import AugmentSettings, RandomCropFlip

datasets = pytest.importorskip("datasets")
NAMES = ["zero", "one", "two", "three", "four", "five", "six"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, and a cache of this test alone."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def digits(first: int = 0, count: int = 12, label: object = None) -> "datasets.Dataset":
    """Digits with their number modulo 7."""
    numbers = range(first, first + count)
    content = {"image": [digit(number) for number in numbers], "label": [number % 7 for number in numbers]}
    kinds = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)}
    data = datasets.Dataset.from_dict(content)
    for name, kind in kinds.items():
        if name in content:
            data = data.cast_column(name, kind)
    return data


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Twelve training images and five held-out ones."""
    datasets.DatasetDict({"train": digits(), "test": digits(50, 5)}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def source(path: Path, split: str = "train", channels: int = 1, **keys: object) -> HuggingFace:
    return HuggingFace(split, DataSettings(path=str(path), channels=channels), **keys)


def shows(images: HuggingFace, index: int, number: int) -> bool:
    return np.array_equal(np.asarray(images.read(index)), np.asarray(digit(number)))


# -------------------------------------------------------------------- images, labels, splits


def test_huggingface_reads_a_saved_data_set(saved: Path) -> None:
    train, val = source(saved), source(saved, "val")
    assert (len(train), len(val)) == (12, 5)
    assert train.classes == val.classes == tuple(NAMES)
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [number % 7 for number in range(12)]
    assert val.labels.tolist() == [number % 7 for number in range(50, 55)]
    assert all(shows(train, index, index) for index in (11, 0, 6))
    assert shows(val, 2, 52)
    assert val.describe(2) == f"{saved} test row 2"


def test_huggingface_reads_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    digits().to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    digits(50, 5).to_parquet(str(tmp_path / "data" / "validation-00000-of-00001.parquet"))
    train, val = (source(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 5)
    assert shows(train, 7, 7)
    assert shows(val, 4, 54)
    assert train.classes == tuple(NAMES)


def test_huggingface_reads_a_folder_of_pictures(tmp_path: Path) -> None:
    write_digits(tmp_path / "images" / "train" / "low", 3)
    write_digits(tmp_path / "images" / "train" / "high", 3, first=3)
    images = source(tmp_path / "images", val_share=0)
    assert {images.classes[label] for label in images.labels} == {"low", "high"}
    assert all(shows(images, index, (index + 3) % 6) for index in range(len(images)))


def test_huggingface_gives_its_share(tmp_path: Path) -> None:
    digits(0, 60).save_to_disk(str(tmp_path / "one"))
    train, val = (source(tmp_path / "one", split, val_share=0.2) for split in ("train", "val"))
    rows = [
        int(split_source.describe(index).split()[-1])
        for split_source in (train, val)
        for index in range(len(split_source))
    ]
    assert sorted(rows) == list(range(60))
    assert 3 <= len(val) <= 25
    assert val.labels.tolist() == [row % 7 for row in rows[len(train) :]]
    assert shows(val, 1, rows[len(train) + 1])
    everything, none = (source(tmp_path / "one", split, val_share=0) for split in ("train", "val"))
    assert (len(everything), len(none)) == (60, 0)


def test_huggingface_splits_and_columns_by_name(tmp_path: Path) -> None:
    renamed = digits(0, 4).rename_columns({"image": "img", "label": "fine"})
    datasets.DatasetDict({"a": renamed, "b": renamed.select([3, 1])}).save_to_disk(str(tmp_path))
    keys = {"image_column": "img", "label_column": "fine", "train_split": "a", "val_split": "b"}
    val = source(tmp_path, "val", **keys)
    assert val.labels.tolist() == [3, 1]
    assert shows(val, 0, 3)
    assert len(source(tmp_path, **keys)) == 4


def test_huggingface_labels_that_are_plain_numbers_missing_or_unwanted(tmp_path: Path) -> None:
    digits(label=datasets.Value("int16")).save_to_disk(str(tmp_path / "numbers"))
    images = source(tmp_path / "numbers", val_share=0)
    assert (images.labels.tolist(), images.classes) == ([number % 7 for number in range(12)], ())
    assert source(tmp_path / "numbers", label_column="").labels is None
    for name, labels in (("hidden", [-1, -1, -1]), ("gaps", [0, None, 2])):
        data = datasets.Dataset.from_dict({"image": [digit(number) for number in range(3)], "label": labels})
        data.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / name))
        assert source(tmp_path / name, val_share=0).labels is None


def test_huggingface_selected_rows_keep_their_labels(tmp_path: Path) -> None:
    digits().select([9, 2, 5]).save_to_disk(str(tmp_path / "some"))
    images = source(tmp_path / "some", val_share=0)
    assert images.labels.tolist() == [2, 2, 5]
    assert shows(images, 0, 9)


def test_huggingface_column_of_encoded_bytes(tmp_path: Path) -> None:
    paths = write_digits(tmp_path / "files", 3)
    datasets.Dataset.from_dict({"image": [path.read_bytes() for path in paths]}).save_to_disk(str(tmp_path / "bytes"))
    assert shows(source(tmp_path / "bytes", label_column="", val_share=0), 2, 2)


def test_huggingface_column_of_bytes_and_path_without_features(tmp_path: Path) -> None:
    from pyarrow import parquet, table

    paths = write_digits(tmp_path / "files", 3)
    (tmp_path / "data").mkdir()
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    parquet.write_table(table({"image": rows}), tmp_path / "data" / "train.parquet")
    assert shows(source(tmp_path / "data", label_column="", val_share=0), 2, 2)


# -------------------------------------------------------------------- what is refused, and what is broken


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"train_split": "trian"}, r"DATA\.train_split trian is no split: did you mean 'train'\?"),
        ({"val_split": "validation"}, r"DATA\.val_split validation is no split: .*Allowed: test, train"),
        ({"image_column": "img"}, r"DATA\.image_column img is no column: .*Allowed: image, label"),
        ({"image_column": "label"}, r"DATA\.image_column label holds ClassLabel"),
        ({"label_column": "lable"}, r"DATA\.label_column lable is no column of .*did you mean 'label'.*or ''"),
        ({"label_column": "image"}, r"DATA\.label_column image holds Image.*: a ClassLabel or whole numbers are read"),
        ({"val_share": 1.0}, r"DATA\.val_share is 1\.0"),
    ],
)
def test_huggingface_names_that_are_not_there_are_refused(keys: dict, text: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=text):
        source(saved, **keys)


def test_huggingface_data_set_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        source("")
    with pytest.raises(ValueError, match=r"DATA\.path \S*nowhere cannot be loaded by the package datasets"):
        source(tmp_path / "nowhere")


def test_huggingface_without_the_package_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"huggingface needs the package datasets .*: pip install datasets"):
        source(saved)


def test_huggingface_row_that_is_no_image_is_broken(tmp_path: Path) -> None:
    content = [write_digits(tmp_path / "files", 1)[0].read_bytes(), b"no image", None, b""]
    data = datasets.Dataset.from_dict({"image": [None if row is None else {"bytes": row} for row in content]})
    data = data.cast(datasets.Features({"image": datasets.Image()}))
    data.save_to_disk(str(tmp_path / "broken"))
    images = source(tmp_path / "broken", label_column="", val_share=0)
    assert shows(images, 0, 0)
    for index in (1, 2, 3):
        with pytest.raises(BrokenImage):
            images.read(index)


# -------------------------------------------------------------------- in use


def test_huggingface_copies_and_loader_processes_read_the_same(saved: Path) -> None:
    images = source(saved)
    assert shows(pickle.loads(pickle.dumps(images)), 8, 8)
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert [batch.indices for batch in helped] == [(3, 11), (5, 0)]
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


def test_huggingface_jpeg_rows_are_cropped_as_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    photograph(64, 96).save(tmp_path / "files" / "a.jpg")
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "files" / "a.jpg")]})
    data.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    here = source(tmp_path / "saved", channels=3, label_column="", val_share=0)
    there = Folder("train", DataSettings(path=str(tmp_path / "files")), val_share=0)
    crop = RandomCropFlip(AugmentSettings(), (20, 20))
    for epoch in range(5):
        one, two = (ImageDataset(images, crop, 0)[(epoch, 0)].image_CHW for images in (here, there))
        assert torch.equal(one, two)


def test_huggingface_trains_as_a_folder_of_the_same_images_does(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 24)
    digits(0, 24).save_to_disk(str(tmp_path / "saved"))
    folder = Folder("train", DataSettings(path=str(tmp_path / "images"), channels=1), val_share=0)
    here = source(tmp_path / "saved", val_share=0)
    assert all(torch.equal(*(pil_to_tensor(each.read(index)) for each in (folder, here))) for index in range(24))
    shared = {**TINY, "DATA.val_share": 0, "DATA.batch_size": 8, "TRAIN.batch": 8}
    curves = []
    for name, path in (("folder", tmp_path / "images"), ("huggingface", tmp_path / "saved")):
        code, text = call(tmp_path / name, {**shared, "DATA.name": name, "DATA.path": path})
        assert code == 0, text
        curves.append(losses(tmp_path / name))
    assert len(curves[0]) == 3
    assert curves[0] == curves[1]
