"""Arrays: the images of HDF5, Zarr and NumPy files are the rows of the array that was written, value by value."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from processes import TINY, call, losses
from small_data import digit, logged

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.arrays import Arrays
from mim.data.transforms import AugmentSettings, RandomCropFlip


def write_hdf5(folder: Path, images: np.ndarray) -> str:
    with h5py.File(folder / "images.h5", "w") as file:
        file["train/images"] = images
    return f"{folder}/images.h5::train/images"


def write_zarr(folder: Path, images: np.ndarray, version: int = 3) -> str:
    group = zarr.open_group(folder / f"images{version}.zarr", mode="w", zarr_format=version)
    array = group.create_array("train", shape=images.shape, chunks=(1, *images.shape[1:]), dtype=images.dtype)
    array[:] = images
    return f"{folder}/images{version}.zarr::train"


def write_zarr_2(folder: Path, images: np.ndarray) -> str:
    return write_zarr(folder, images, 2)


def write_npy(folder: Path, images: np.ndarray) -> str:
    np.save(folder / "images.npy", images)
    return f"{folder}/images.npy"


def write_npz(folder: Path, images: np.ndarray) -> str:
    np.savez_compressed(folder / "images.npz", train_images=images)
    return f"{folder}/images.npz::train_images"


WRITERS = [write_hdf5, write_zarr, write_zarr_2, write_npy, write_npz]
Writer = Callable[[Path, np.ndarray], str]


def source(path: object, split: str = "train", channels: int = 3, **keys: object) -> Arrays:
    shared = {"channels_from": keys.pop("channels_from")} if "channels_from" in keys else {}
    return Arrays(split, DataSettings(path=str(path), channels=channels, **shared), **{"val_share": 0, **keys})


def some(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


# -------------------------------------------------------------------- pixels


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "int16", ">u2"])
def test_arrays_have_the_pixels_of_the_file(write: Writer, dtype: str, tmp_path: Path) -> None:
    written = some(4, 5, 6, 3, dtype=dtype)
    images = source(write(tmp_path, written))
    kept = {"uint8": torch.uint8, "uint16": torch.uint16, ">u2": torch.uint16}
    for row in (3, 0, 2):
        assert images.read(row).dtype == kept.get(dtype, torch.float32)
        assert np.array_equal(images.read(row).numpy(), written[row].transpose(2, 0, 1).astype(dtype.strip(">")))


@pytest.mark.parametrize(
    ("shape", "channels", "keys", "axes"),
    [
        ((4, 3, 7, 5), 3, {}, (0, 1, 2)),
        ((4, 7, 5, 3), 3, {}, (2, 0, 1)),
        ((4, 3, 7, 3), 3, {"layout": "NCHW"}, (0, 1, 2)),
        ((4, 3, 7, 3), 3, {"layout": "NHWC"}, (2, 0, 1)),
        ((4, 12, 7, 5), 12, {}, (0, 1, 2)),
    ],
)
def test_arrays_of_each_layout(shape: tuple, channels: int, keys: dict, axes: tuple, tmp_path: Path) -> None:
    written = some(*shape)
    images = source(write_npy(tmp_path, written), channels=channels, **keys)
    assert np.array_equal(images.read(1).numpy(), written[1].transpose(axes))


def test_arrays_of_grey_levels_and_of_chosen_channels(tmp_path: Path) -> None:
    written = some(4, 7, 5)
    assert np.array_equal(source(write_hdf5(tmp_path, written), channels=1).read(2).numpy(), written[2][None])
    written = some(4, 7, 9, 12)
    path = write_npy(tmp_path, written)
    images = source(path, channels=2, channels_from=(11, 4), layout="NHWC")
    assert np.array_equal(images.read(1).numpy(), written[1][..., [11, 4]].transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"and DATA\.channels_from \[11, 12\]: set DATA\.channels to its channels"):
        source(path, channels=2, channels_from=(11, 12), layout="NHWC")


def test_arrays_of_wide_numbers_are_exact_or_broken(tmp_path: Path) -> None:
    written = some(2, 4, 4, dtype="int64")
    written[1, 0, 0] = 2**24 + 1
    images = source(write_npy(tmp_path, written), channels=1)
    assert np.array_equal(images.read(0).numpy()[0], written[0])
    with pytest.raises(BrokenImage, match=r"levels from \d+ to 16777217"):
        images.read(1)


# -------------------------------------------------------------------- what is asked and refused


@pytest.mark.parametrize(
    ("shape", "channels", "keys", "text"),
    [
        ((4, 3, 7, 3), 3, {}, r"shape \(4, 3, 7, 3\), and DATA\.layout is auto.*: two axes may be the channels"),
        ((4, 5, 7, 6), 3, {}, r"shape \(4, 5, 7, 6\).*DATA\.channels 3: set DATA\.channels"),
        ((4, 5, 7), 3, {}, r"DATA\.channels 3: set DATA\.channels to its channels"),
        ((4, 5, 7), 1, {"layout": "NCHW"}, r"DATA\.layout is NCHW, DATA\.channels 1: set DATA\.layout to its axes"),
        ((4, 5, 7, 3, 2), 3, {}, r"N images have the axes NCHW, NHWC or NHW"),
        ((0, 5, 7, 3), 3, {}, r"none of length 0"),
    ],
)
def test_arrays_of_other_shapes_are_refused(shape: tuple, channels: int, keys: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        source(write_npy(tmp_path, some(*shape)), channels=channels, **keys)


@pytest.mark.parametrize("write", [write_hdf5, write_zarr, write_npz])
def test_arrays_name_the_nearest_one_to_a_wrong_name(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, some(4, 5, 6, 3))
    file, name = path.split("::")
    with pytest.raises(ValueError, match=rf"DATA\.path \S*{Path(file).name} has no array .*did you mean '{name}'\?"):
        source(f"{path}s")
    with pytest.raises(ValueError, match=r"DATA\.path names the array .*, and DATA\.array other"):
        source(path, array="other")
    assert len(source(file)) == len(source(file, array=name)) == 4


def test_arrays_ask_which_of_several(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["b/c"], file["labels"] = some(4, 5, 6, 3), some(4, 5, 6), some(4)
    with pytest.raises(ValueError, match=r"2 arrays of 3 or 4 axes \(a \(4, 5, 6, 3\), b/c \(4, 5, 6\)\)"):
        source(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"has a group, and no array, 'b': Allowed: a, b/c, labels"):
        source(f"{tmp_path}/a.h5::b")
    with pytest.raises(ValueError, match=r"it is one array, without a name: leave 'x' out"):
        source(f"{write_npy(tmp_path, some(4, 5, 6, 3))}::x")


def test_arrays_of_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"no HDF5 at all" * 300)
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    for name, text in (
        ("a.h5", "is no HDF5, .npy or .npz file by its first bytes"),
        ("empty", "is a folder and no Zarr store"),
        ("none.h5", "does not exist"),
        ("objects.npy", "cannot be opened: .*Python objects"),
    ):
        with pytest.raises(ValueError, match=rf"DATA\.path \S*{name} {text}"):
            source(tmp_path / name)
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        source("")


def test_arrays_with_a_codec_that_unpickles_are_refused(tmp_path: Path) -> None:
    path = write_zarr_2(tmp_path, some(2, 5, 6, 3))
    root = Path(path.split("::")[0])
    zarr.open_group(root, mode="a").create_array("names", shape=(2,), chunks=(2,), dtype=str)[:] = ["cat", "dog"]
    assert source(path, labels_array="names").classes == ("cat", "dog")
    header = root / "names" / ".zarray"
    content = json.loads(header.read_text())
    content["filters"].append({"id": "pickle", "protocol": 5})
    header.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"DATA\.labels_array \S* cannot be opened: .* runs code that the file names"):
        source(path, labels_array="names")


@pytest.mark.parametrize(("write", "package"), [(write_hdf5, "h5py"), (write_zarr, "zarr")])
def test_arrays_name_the_package_that_is_missing(
    write: Writer, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, some(2, 5, 6, 3))
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"h5py": "hdf5", "zarr": "zarr"}[package]
    with pytest.raises(ValueError, match=rf"DATA\.path .* package {package}: pip install 'mim-toolkit\[{extra}\]'"):
        source(path)


# -------------------------------------------------------------------- splits and labels


def test_arrays_val_share_splits_by_the_row(tmp_path: Path) -> None:
    written = some(200, 4, 4)
    path = write_hdf5(tmp_path, written)
    train, val = (source(path, split, channels=1, val_share=0.2) for split in ("train", "val"))
    assert 20 < len(val) < 60
    rows = [[int(images.describe(index).rpartition(" ")[2]) for index in range(len(images))] for images in (train, val)]
    assert sorted(rows[0] + rows[1]) == list(range(200))
    assert all(np.array_equal(val.read(index).numpy()[0], written[row]) for index, row in enumerate(rows[1]))
    longer = write_npy(tmp_path, some(300, 4, 4))
    more = source(longer, "val", channels=1, val_share=0.2)
    assert [more.describe(index).rpartition(" ")[2] for index in range(len(val))] == list(map(str, rows[1]))


def test_arrays_labels_of_both_splits(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/x"], file["train/y"] = some(6, 4, 4), np.array([2, 0, 1, 2, 0, 1]).reshape(6, 1, 1)
        file["test/x"], file["test/y"] = some(3, 4, 4), [1, 2, 0]
        file["names"] = ["cat", "dog", "cat", "ant", "dog", "cat"]
    keys = {"val_path": f"{tmp_path}/a.h5::test/x", "labels_array": "train/y", "val_labels_array": "test/y"}
    train, val = (source(f"{tmp_path}/a.h5::train/x", split, channels=1, **keys) for split in ("train", "val"))
    assert (train.labels.tolist(), val.labels.tolist()) == ([2, 0, 1, 2, 0, 1], [1, 2, 0])
    assert train.labels.dtype == np.int64
    named = source(f"{tmp_path}/a.h5::train/x", channels=1, labels_array="names")
    assert (named.classes, named.labels.tolist()) == (("ant", "cat", "dog"), [1, 2, 1, 0, 2, 1])
    np.save(tmp_path / "labels.npy", np.arange(6))
    beside = source(f"{tmp_path}/a.h5::train/x", channels=1, labels_array=f"{tmp_path}/labels.npy")
    assert beside.labels.tolist() == list(range(6))
    keys.pop("val_labels_array")
    with pytest.raises(ValueError, match=r"DATA\.labels_array .* 3 images: it needs one .*DATA\.val_labels_array"):
        source(f"{tmp_path}/a.h5::train/x", "val", channels=1, **keys)
    with pytest.raises(ValueError, match=r"DATA\.labels_array \S*a\.h5 has no array 'train/z': did you mean 'train/y'"):
        source(f"{tmp_path}/a.h5::train/x", channels=1, labels_array="train/z")


@pytest.mark.parametrize("labels", [np.array([0.5] * 4), np.array([-1, 0, 1, 2]), np.zeros((4, 2), int)])
def test_arrays_labels_that_are_no_classes_are_refused(labels: np.ndarray, tmp_path: Path) -> None:
    path = write_npy(tmp_path, some(4, 5, 6, 3))
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"DATA\.labels_array \S*labels\.npy is an array of"):
        source(path, labels_array=f"{tmp_path}/labels.npy")


# -------------------------------------------------------------------- damage


def test_arrays_damaged_chunk_is_one_broken_image(tmp_path: Path) -> None:
    written = some(4, 8, 8, 3)
    path = write_zarr(tmp_path, written)
    (damaged,) = Path(path.replace("::", "/"), "c", "2").rglob("0/0/0")
    damaged.write_bytes(b"junk")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", data=written, chunks=(1, 8, 8, 3), fletcher32=True)
        offset = images.id.get_chunk_info(2).byte_offset
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(offset)
        file.write(b"junk")
    for images in (source(path), source(tmp_path / "a.h5")):
        with pytest.raises(BrokenImage):
            images.read(2)
        assert np.array_equal(images.read(3).numpy(), written[3].transpose(2, 0, 1))


@pytest.mark.parametrize("write", [write_hdf5, write_zarr, write_npy])
def test_arrays_that_vanish_or_shrink_give_broken_images_until_they_are_back(write: Writer, tmp_path: Path) -> None:
    written = some(40, 64, 64)
    path = write(tmp_path, written)
    images, file = source(path, channels=1), Path(path.split("::")[0])
    assert images.missing() == ""
    file.rename(tmp_path / "away")
    with pytest.raises(BrokenImage) as caught:
        images.read(39)
    assert isinstance(caught.value.__cause__, OSError)
    assert images.missing() == f"DATA.path {images.file.name()}: No such file or directory"
    (tmp_path / "away").rename(file)
    assert np.array_equal(images.read(39).numpy()[0], written[39])
    if file.is_file():
        os.truncate(file, 4096)
        with pytest.raises(BrokenImage):
            images.read(39)


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_of_half_a_file_are_refused(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, some(40, 64, 64))
    file = Path(path.split("::")[0])
    if file.is_dir():
        (file / path.split("::")[1] / (".zarray" if (file / ".zgroup").exists() else "zarr.json")).write_text("{")
    else:
        os.truncate(file, 4096)
    with pytest.raises(ValueError, match=rf"DATA\.path \S*{file.name}"):
        source(path, channels=1)


# -------------------------------------------------------------------- in use


@pytest.mark.parametrize("write", WRITERS)
def test_arrays_copies_and_workers_read_the_same(write: Writer, tmp_path: Path) -> None:
    written = some(12, 16, 16, 3)
    images = source(write(tmp_path, written))
    images.read(3)  # opened before the workers start
    copied = pickle.dumps(images)
    assert written.tobytes() not in copied
    assert torch.equal(pickle.loads(copied).read(5), images.read(5))
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 1), (2, 7)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


def test_arrays_in_chunks_of_many_images_are_said_to_be_slow(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=some(20, 8, 8), chunks=(10, 8, 8), compression="gzip")
    with logged() as lines:
        source(tmp_path / "a.h5", channels=1)
    assert any("chunks hold 10 images, and reading one image decodes a chunk" in line for line in lines)


@pytest.mark.slow
def test_arrays_of_2000_images_in_hdf5_pretrain_as_the_same_images_in_numpy_do(tmp_path: Path) -> None:
    images = np.stack([np.asarray(digit(number % 1797)) for number in range(2000)])
    paths = write_hdf5(tmp_path, images), write_npy(tmp_path, images)
    shared = {**TINY, "DATA.name": "arrays", "DATA.batch_size": 200, "TRAIN.batch": 200, "DATA.workers": 2}
    curves = []
    for name, path in zip(("hdf5", "npy"), paths, strict=True):
        code, text = call(tmp_path / name, {**shared, "DATA.path": path})
        assert code == 0, text
        curves.append(losses(tmp_path / name))
    assert curves[0] == curves[1]
    assert curves[0]
