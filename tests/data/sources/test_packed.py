"""Packed data sets: they are the folder they were made from, and nothing damaged passes for one."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_sets import full_image, packed, pixels, quiet, source, write_classes
from processes import TINY, call, losses
from small_data import photograph, write_digits

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder
from mim.data.sources.packed import HEADER, INDEX, Header, Packed
from mim.data.sources.packing import PackSettings, damaged
from mim.data.transforms import AugmentSettings, RandomCropFlip

# -------------------------------------------------------------------- the same as the folder


def layout_splits(root: Path) -> tuple[Path, dict]:
    write_classes(root / "train")
    write_classes(root / "val", 2)
    return root, {}


def layout_classes(root: Path) -> tuple[Path, dict]:
    return write_classes(root, 20), {"val_share": 0.2}


def layout_train_alone(root: Path) -> tuple[Path, dict]:
    write_classes(root / "train", 20)
    return root, {"val_share": 0.2}


def layout_flat(root: Path) -> tuple[Path, dict]:
    write_digits(root, 7)
    return root, {"val_share": 0.01}  # of 7: one


def layout_list(root: Path) -> tuple[Path, dict]:
    write_digits(root / "elsewhere", 30)
    lines = [f"../elsewhere/digit-{number:03d}.png\t{'odd' if number % 2 else 'even'}\n" for number in range(30)]
    (root / "lists").mkdir()
    (root / "lists" / "some.txt").write_text("".join(reversed(lines)))
    return root / "lists" / "some.txt", {"val_share": 0.3}


LAYOUTS = [layout_splits, layout_classes, layout_train_alone, layout_flat, layout_list]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_equals_the_folder_it_was_made_from(layout: Callable, tmp_path: Path) -> None:
    path, keys = layout(tmp_path / "images")
    out = packed(path, tmp_path / "packed")
    for split in ("train", "val"):
        there, here = Folder(split, DataSettings(path=str(path), channels=1), **keys), source(out, split, **keys)
        assert len(here) == len(there) > 0
        assert here.classes == there.classes
        assert (here.labels is None) == (there.labels is None)
        if there.labels is not None:
            assert here.labels.dtype == np.int64
            assert here.labels.tolist() == there.labels.tolist()
        for index in range(len(there)):
            assert Path(here.describe(index)).resolve() == Path(there.describe(index)).resolve()
            assert here.read(index).mode == there.read(index).mode == "L"
            assert torch.equal(pixels(here, index), pixels(there, index))


def test_packed_share_can_be_fixed_when_packing(tmp_path: Path) -> None:
    path, keys = layout_classes(tmp_path / "images")
    out = packed(path, tmp_path / "packed", share=0.2)
    names = [Folder("val", DataSettings(path=str(path), channels=1), **keys).describe(index) for index in range(5)]
    val = source(out, "val", val_share=0)
    assert [val.describe(index) for index in range(5)] == names


def test_packed_val_share_zero_holds_none_out(tmp_path: Path) -> None:
    out = packed(write_classes(tmp_path / "images"), tmp_path / "packed")
    assert (len(source(out, val_share=0)), len(source(out, "val", val_share=0))) == (18, 0)
    assert source(out, "val", val_share=0).labels is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_packed_pictures_have_the_channels_they_were_packed_with(channels: int, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photograph().convert("RGBA").save(tmp_path / "images" / "a.png")
    out = packed(tmp_path / "images", tmp_path / "packed", channels=channels)
    there = Folder("train", DataSettings(path=str(tmp_path / "images"), channels=channels), val_share=0)
    here = source(out, channels=channels, val_share=0)
    assert here.read(0).mode == there.read(0).mode
    assert torch.equal(pixels(here, 0), pixels(there, 0))
    reduced, size = here.read_reduced(0, full_image)
    assert size == (48, 64)
    assert torch.equal(reduced, pixels(there, 0))
    with pytest.raises(ValueError, match=rf"DATA\.channels is 5 and the images packed in .* have {channels}"):
        source(out, channels=5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_packed_arrays_of_many_channels(dtype: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    arrays = [(generator.random((12, 9 + number, 11)) * 200).astype(dtype) for number in range(3)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / "images" / f"{number}.npy", array)
    here = source(packed(tmp_path / "images", tmp_path / "packed", channels=12), channels=12, val_share=0)
    for index, array in enumerate(arrays):
        assert here.read(index).dtype == torch.from_numpy(array).dtype
        assert np.array_equal(here.read(index).numpy(), array)
    crops = ImageDataset(here, RandomCropFlip(AugmentSettings(), (8, 8)), 0)
    assert crops[(0, 1)].image_CHW.shape == (12, 8, 8)


# -------------------------------------------------------------------- reading


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return packed(write_classes(tmp_path / "images"), tmp_path / "packed")


def test_packed_copies_open_the_files_again(out: Path) -> None:
    here = source(out, val_share=0.2)
    content = pickle.dumps(here)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert (len(copy), copy.labels.tolist()) == (len(here), here.labels.tolist())
    assert all(torch.equal(pixels(copy, index), pixels(here, index)) for index in range(len(here)))


def test_packed_batches_do_not_depend_on_loader_processes(out: Path) -> None:
    crops = ImageDataset(source(out, val_share=0), RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 17), (2, 16)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert [batch.indices for batch in helped] == [(3, 11), (5, 0), (17, 16)]
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


def test_packed_reading_shares_the_memory_of_the_file(out: Path) -> None:
    here = source(out, val_share=0)
    first, second = (here.read_reduced(4, full_image)[0] for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


def test_packed_trains_as_the_folder_does(tmp_path: Path) -> None:
    path, keys = layout_classes(tmp_path / "images")
    shared = {**TINY, "DATA.val_share": keys["val_share"], "DATA.batch_size": 8, "TRAIN.batch": 8}
    curves = []
    for name, where in (("folder", path), ("packed", packed(path, tmp_path / "packed"))):
        code, text = call(tmp_path / name, {**shared, "DATA.name": name, "DATA.path": where})
        assert code == 0, text
        curves.append(losses(tmp_path / name))
    assert len(curves[0]) == len(curves[1]) > 3
    assert curves[0] == pytest.approx(curves[1], rel=2e-3)  # Pillow and PyTorch round crops differently


# -------------------------------------------------------------------- damage


def changed(out: Path, **content: object) -> None:
    header = json.loads((out / HEADER).read_text())
    (out / HEADER).write_text(json.dumps({**header, **content}))


def without(out: Path, key: str) -> None:
    header = json.loads((out / HEADER).read_text())
    del header[key]
    (out / HEADER).write_text(json.dumps(header))


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda out: shutil.rmtree(out), "does not exist"),
        (lambda out: (out / HEADER).unlink(), "holds no packed.json: python tools/pack.py SOURCE OUT makes"),
        (lambda out: (out / HEADER).write_text("{"), "packed.json is damaged, or no packed data set"),
        (lambda out: (out / HEADER).write_text("[1]"), "packed.json is damaged, or no packed data set"),
        (lambda out: changed(out, format="another"), "packed.json is damaged, or no packed data set"),
        (lambda out: changed(out, version=2), "of version 2 and this toolkit reads up to 1: update it"),
        (lambda out: changed(out, dtype="int3"), "packed.json is damaged"),
        (lambda out: changed(out, splits=[1]), "packed.json is damaged"),
        (lambda out: changed(out, size=32), "packed.json is damaged"),
        (lambda out: changed(out, size=[32]), "packed.json is damaged"),
        (lambda out: changed(out, splits={"train": {"images": 3}}), "packed.json is damaged"),
        (lambda out: without(out, "store"), "packed.json is damaged"),
        (lambda out: shorter(out / "train.images"), r"train\.images has [\d,]+ bytes and [\d,]+ were written"),
        (lambda out: shorter(out / "train.names"), r"train\.names has [\d,]+ bytes and [\d,]+ were written"),
        (lambda out: shorter(out / "train.index"), "train cannot be opened"),
        (lambda out: (out / "train.index").write_bytes(b"x" * 5000), "train cannot be opened"),
        (lambda out: (out / "train.images").unlink(), "train cannot be opened"),
        (lambda out: np.save((out / "train.index").open("wb"), np.zeros(18)), "index does not hold 18 images"),
        (lambda out: np.save((out / "train.index").open("wb"), np.zeros(17, INDEX)), "does not hold 18 images"),
    ],
)
def test_packed_damage_is_named(damage: Callable, text: str, out: Path) -> None:
    damage(out)
    with pytest.raises(ValueError, match=text):
        source(out)


def test_packed_header_from_before_there_was_a_size_is_read(out: Path) -> None:
    header = Header.of(out)
    without(out, "size")
    assert Header.of(out) == header
    assert len(source(out, val_share=0)) == 18


def test_packed_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        Packed("train", DataSettings(channels=1))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("offset", -64),
        ("offset", 64 * 10**6),
        ("offset", 3),
        ("size", 10**9),
        ("size", 0),
        ("height", 31),
        ("width", 0),
    ],
)
def test_packed_index_that_cannot_be_right_is_a_broken_image(column: str, value: int, out: Path) -> None:
    rows = np.load(out / "train.index")
    rows[column][4] = value
    np.save((out / "train.index").open("wb"), rows)
    here = source(out, val_share=0)
    for read in (lambda: here.read(4), lambda: here.read_reduced(4, full_image)):
        with pytest.raises(BrokenImage):
            read()
    here.read(5)


def test_packed_jpeg_that_is_damaged_is_a_broken_image(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 3)
    out = packed(tmp_path / "images", tmp_path / "packed", PackSettings(store="jpeg"))
    content = bytearray((out / "train.images").read_bytes())
    content[:8] = bytes(8)
    (out / "train.images").write_bytes(content)
    here = source(out, val_share=0)
    with pytest.raises(BrokenImage):
        here.read(0)
    here.read(1)


def test_packed_changed_byte_is_found(out: Path) -> None:
    assert damaged(out, quiet) == []
    row = np.load(out / "train.index")[7]
    content = bytearray((out / "train.images").read_bytes())
    content[row["offset"] + 100] ^= 1
    (out / "train.images").write_bytes(content)
    (line,) = damaged(out, quiet)
    assert line.startswith("train image 7, four/digit-007.png")
