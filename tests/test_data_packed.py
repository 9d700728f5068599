"""Packed data sets: they are the folder they were made from, and nothing half-made or damaged passes for one."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import TINY, call, losses
from small_data import photograph, write_digits
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data import DataSettings, Folder, Packed, Source
from mim.data.base import Need
from mim.data.images import BrokenImage
from mim.data.loader import ImageDataset, batches
from mim.data.packed import HEADER, INDEX
from mim.data.packing import LEFT_OUT, PackSettings, damaged, pack, shrunk
from mim.data.transforms import AugmentSettings, RandomCropFlip

AS_IS = PackSettings(short_side=0)


def whole(height: int, width: int) -> Need:
    """All of an image is needed."""
    return Need(1.0, height)


def quiet(done: int) -> None:
    """Nobody watches."""


def packed(
    path: Path, out: Path, settings: PackSettings = AS_IS, channels: int = 1, share: float = 0, **keys: object
) -> Path:
    """The folder's images, packed."""
    shared = DataSettings(path=str(path), channels=channels)
    pack({split: Folder(split, shared, val_share=share, **keys) for split in ("train", "val")}, out, settings, quiet)
    return out


def source(out: Path, split: str = "train", channels: int = 1, **keys: object) -> Packed:
    return Packed(split, DataSettings(path=str(out), channels=channels), **keys)


def pixels(found: Source, index: int) -> torch.Tensor:
    """(C, H, W), whatever the source reads."""
    stored = found.read(index)
    return stored if isinstance(stored, torch.Tensor) else pil_to_tensor(stored)


def write_classes(root: Path, each: int = 6) -> Path:
    for number, name in enumerate(("five", "four", "three")):
        write_digits(root / name, each, first=each * number)
    return root


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
    wanted = [Folder("val", DataSettings(path=str(path), channels=1), **keys).describe(place) for place in range(5)]
    found = source(out, "val", val_share=0)
    assert [found.describe(place) for place in range(5)] == wanted


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
    reduced, size = here.read_reduced(0, whole)
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


# -------------------------------------------------------------------- smaller images


@pytest.mark.parametrize(("short_side", "size"), [(24, (24, 32)), (31, (31, 41)), (48, (48, 64)), (300, (48, 64))])
def test_packed_shorter_side_is_reduced_and_never_enlarged(short_side: int, size: tuple, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photograph(48, 64).save(tmp_path / "images" / "wide.png")
    photograph(64, 48).save(tmp_path / "images" / "high.png")
    out = packed(tmp_path / "images", tmp_path / "packed", PackSettings(short_side=short_side), channels=3)
    high, wide = (pixels(source(out, channels=3, val_share=0), index) for index in (0, 1))
    assert (tuple(high.shape[1:]), tuple(wide.shape[1:])) == (size[::-1], size)
    expected = photograph(48, 64).resize(size[::-1], Image.Resampling.BICUBIC)
    assert torch.equal(wide, pil_to_tensor(expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_packed_arrays_are_reduced_as_pictures_are(dtype: torch.dtype) -> None:
    picture = photograph(48, 64).point(lambda level: 64 + level // 2)  # Pillow would also clip between the axes
    array_CHW = pil_to_tensor(picture).float()
    scale = 257 if dtype == torch.uint16 else 1
    reduced = shrunk((array_CHW * scale).to(dtype), 20)
    assert reduced.dtype == dtype
    expected = pil_to_tensor(shrunk(picture, 20)).float()
    assert reduced.shape == expected.shape
    assert (reduced.float() / scale - expected).abs().max() <= 1.5  # Pillow rounds between the axes


def test_packed_jpeg_is_the_file_of_that_quality_and_cropped_as_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photograph(160, 240).save(tmp_path / "images" / "a.png")
    here = source(
        packed(
            tmp_path / "images", tmp_path / "packed", PackSettings(store="jpeg", short_side=96, quality=80), channels=3
        ),
        channels=3,
        val_share=0,
    )
    file = io.BytesIO()
    photograph(160, 240).resize((144, 96), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    assert torch.equal(pixels(here, 0), pil_to_tensor(Image.open(file)))
    assert here.read_reduced(0, whole)[1] == (96, 144)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(file.getvalue())
    there = Folder("train", DataSettings(path=str(tmp_path / "files")), val_share=0)
    crop = RandomCropFlip(AugmentSettings(), (20, 20))
    for epoch in range(5):
        one, two = (ImageDataset(found, crop, 0)[(epoch, 0)].image_CHW for found in (here, there))
        assert torch.equal(one, two)


def test_packed_jpeg_refuses_what_a_jpeg_file_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.zeros((3, 4, 4), np.uint16))
    with pytest.raises(ValueError, match=r"--store jpeg .*a\.npy is an array of 3 channels of uint16: use --store pix"):
        packed(tmp_path / "images", tmp_path / "packed", PackSettings(store="jpeg"), channels=3)


@pytest.mark.parametrize(
    ("keys", "text"),
    [({"short_side": -1}, "--short-side is -1"), ({"quality": 0}, "--quality is 0"), ({"workers": -1}, "--workers is")],
)
def test_packed_settings_out_of_range_are_refused(keys: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PackSettings(**keys)


# -------------------------------------------------------------------- writing


def test_packed_files_do_not_depend_on_workers(tmp_path: Path) -> None:
    write_classes(tmp_path / "images", 12)
    one = packed(tmp_path / "images", tmp_path / "one")
    two = packed(tmp_path / "images", tmp_path / "two", PackSettings(short_side=0, workers=2))
    assert sorted(path.name for path in one.iterdir()) == [HEADER, "train.images", "train.index", "train.names"]
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())


def test_packed_leaves_broken_images_out_and_names_them(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "images", 4)
    (root / "four" / "digit-005.png").write_bytes(b"not a picture")
    shared = DataSettings(path=str(root), channels=1)
    whole = Folder("train", shared, val_share=0)
    found = pack({"train": whole, "val": Folder("val", shared, val_share=0)}, tmp_path / "packed", AS_IS, quiet)
    assert [name for name, _ in found.broken] == [str(root / "four" / "digit-005.png")]
    assert "digit-005.png" in (tmp_path / "packed" / LEFT_OUT).read_text()
    here = source(tmp_path / "packed", val_share=0)
    kept = [index for index in range(12) if index != 5]
    assert here.labels.tolist() == whole.labels[kept].tolist()
    assert [here.describe(place) for place in range(11)] == [whole.describe(index) for index in kept]
    assert torch.equal(pixels(here, 5), pixels(whole, 6))


def test_packed_held_out_images_that_cannot_be_read_move_no_training_image(tmp_path: Path) -> None:
    write_digits(tmp_path / "images" / "train", 30)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "images" / "val" / "a.png").write_bytes(b"not a picture")
    out = packed(tmp_path / "images", tmp_path / "packed")
    assert (len(source(out)), len(source(out, "val"))) == (30, 0)


def test_packed_without_an_image_that_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"no training image that can be read, such as .*a\.png: UnidentifiedImage"):
        packed(tmp_path / "images", tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_packed_images_of_two_types_are_refused(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 2)
    np.save(tmp_path / "images" / "z.npy", np.zeros((1, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"z\.npy is an array of 1 channels of float32, and .* a picture of 1 ch"):
        packed(tmp_path / "images", tmp_path / "packed")


class Stopped(Folder):
    """A user's interrupt at the third image."""

    def read(self, index: int) -> object:
        if index == 2:
            raise KeyboardInterrupt
        return super().read(index)


def test_packed_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 5)
    shared = DataSettings(path=str(tmp_path / "images"), channels=1)
    with pytest.raises(KeyboardInterrupt):
        pack({"train": Stopped("train", shared, val_share=0)}, tmp_path / "packed", AS_IS, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_packed_takes_the_place_of_what_a_killed_process_left(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 5)
    aside = tmp_path / "packed.partial"
    aside.mkdir()
    (aside / "train.images").write_bytes(b"half")
    (tmp_path / "packed").mkdir()
    assert len(source(packed(tmp_path / "images", tmp_path / "packed"), val_share=0)) == 5
    assert not aside.exists()
    aside.mkdir()
    (aside / "thesis.tex").touch()
    shutil.rmtree(tmp_path / "packed")
    with pytest.raises(ValueError, match=r"packed\.partial is in the way"):
        packed(tmp_path / "images", tmp_path / "packed")
    assert (aside / "thesis.tex").exists()


def test_packed_never_writes_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="is there and not empty"):
        packed(tmp_path / "images", tmp_path / "images")


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
    first, again = (here.read_reduced(4, whole)[0] for _ in range(2))
    assert first.data_ptr() == again.data_ptr()


def test_packed_trains_as_the_folder_does(tmp_path: Path) -> None:
    path, keys = layout_classes(tmp_path / "images")
    shared = {**TINY, "DATA.val_share": keys["val_share"], "DATA.batch_size": 8, "TRAIN.batch": 8}
    found = []
    for name, where in (("folder", path), ("packed", packed(path, tmp_path / "packed"))):
        code, text = call(tmp_path / name, {**shared, "DATA.name": name, "DATA.path": where})
        assert code == 0, text
        found.append(losses(tmp_path / name))
    assert len(found[0]) == len(found[1]) > 3
    assert found[0] == pytest.approx(found[1], rel=2e-3)  # Pillow and PyTorch round crops differently


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
    for read in (lambda: here.read(4), lambda: here.read_reduced(4, whole)):
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
