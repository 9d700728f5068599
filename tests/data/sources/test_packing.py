"""Packing: what is written, in which size, and that nothing half-made passes for a packed data set."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_sets import AS_IS, full_image, packed, pixels, quiet, source, write_classes
from PIL import Image, ImageOps
from small_data import photograph, write_digits
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder
from mim.data.sources.packed import HEADER, Header, Packed
from mim.data.sources.packing import LEFT_OUT, PackSettings, pack
from mim.data.sources.resizing import fit_to_size, reduce_to_short_side
from mim.data.transforms import AugmentSettings, RandomCropFlip

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
    reduced = reduce_to_short_side((array_CHW * scale).to(dtype), 20)
    assert reduced.dtype == dtype
    expected = pil_to_tensor(reduce_to_short_side(picture, 20)).float()
    assert reduced.shape == expected.shape
    assert (reduced.float() / scale - expected).abs().max() <= 1.5  # Pillow rounds between the axes


# -------------------------------------------------------------------- images of one size

SHAPES = {  # around a size of 40 x 56
    "wide": (90, 300),
    "high": (200, 110),
    "of that aspect": (80, 112),
    "smaller": (25, 28),
    "wide and smaller": (10, 50),
    "high and narrow": (300, 20),
    "of that size": (40, 56),
}


def covered_and_cut(picture: Image.Image, height: int, width: int) -> Image.Image:
    """With Pillow alone: resized whole, then cut."""
    covering = ImageOps.cover(picture, (width, height), Image.Resampling.BICUBIC)
    left, top = (covering.width - width) // 2, (covering.height - height) // 2
    return covering.crop((left, top, left + width, top + height))


@pytest.mark.parametrize("name", SHAPES)
def test_packing_to_one_size_cuts_the_centre_of_what_just_covers_it(name: str) -> None:
    picture = photograph(*SHAPES[name])
    actual, expected = (
        pil_to_tensor(image).float() for image in (fit_to_size(picture, (40, 56)), covered_and_cut(picture, 40, 56))
    )
    assert actual.shape == (3, 40, 56)
    assert (
        actual - expected
    ).abs().max() <= 2  # Pillow rounds between the axes; a shift by a pixel makes a mean of .8 or more
    assert (actual - expected).abs().mean() <= 0.2
    if name == "of that size":
        assert torch.equal(actual, pil_to_tensor(picture).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_packing_to_one_size_treats_arrays_as_pictures(name: str, dtype: torch.dtype) -> None:
    picture = photograph(*SHAPES[name]).point(lambda level: 64 + level // 2)  # Pillow would also clip between the axes
    scale = 257 if dtype == torch.uint16 else 1
    actual = fit_to_size((pil_to_tensor(picture).float() * scale).to(dtype), (40, 56))
    assert actual.dtype == dtype
    expected = pil_to_tensor(fit_to_size(picture, (40, 56))).float()
    assert actual.shape == expected.shape
    assert (actual.float() / scale - expected).abs().max() <= 1.5  # Pillow rounds between the axes


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_packing_to_one_size_keeps_order_and_labels(store: str, tmp_path: Path) -> None:
    for number, shape in enumerate(SHAPES.values()):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        photograph(*shape).save(tmp_path / "images" / "ab"[number % 2] / f"{number}.png")
    there = Folder("train", DataSettings(path=str(tmp_path / "images")), val_share=0)
    settings = PackSettings(size=(40, 56), store=store, quality=95)
    here = source(packed(tmp_path / "images", tmp_path / "packed", settings, channels=3), channels=3, val_share=0)
    assert (here.header.size, here.header.short_side) == ((40, 56), 40)
    assert (
        (here.classes, here.labels.tolist())
        == (there.classes, there.labels.tolist())
        == (("a", "b"), [0] * 4 + [1] * 3)
    )
    for index in range(len(SHAPES)):
        assert Path(here.describe(index)).resolve() == Path(there.describe(index)).resolve()
        assert here.read_reduced(index, full_image)[1] == (40, 56)
        actual, expected = pixels(here, index).float(), pil_to_tensor(fit_to_size(there.read(index), (40, 56))).float()
        assert actual.shape == expected.shape
        assert (actual - expected).abs().mean() <= (0 if store == "pixels" else 8)


def test_packing_to_one_size_takes_arrays_of_many_channels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        levels_HWC = np.random.default_rng(number).integers(0, 60000, (12 + number, 50, 12), np.uint16)
        np.save(tmp_path / "images" / f"{number}.npy", levels_HWC)
    here = source(
        packed(tmp_path / "images", tmp_path / "packed", PackSettings(size=(20, 16)), channels=12),
        channels=12,
        val_share=0,
    )
    assert [tuple(here.read(index).shape) for index in range(3)] == [(12, 20, 16)] * 3
    assert here.read(0).dtype == torch.uint16


def test_packing_says_in_the_header_whether_images_have_one_size(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 3)
    for name, settings, size in (("one", PackSettings(size=(24, 40)), (24, 40)), ("own", AS_IS, None)):
        assert Header.of(packed(tmp_path / "images", tmp_path / name, settings)).size == size


# -------------------------------------------------------------------- JPEG, and settings


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
    assert here.read_reduced(0, full_image)[1] == (96, 144)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(file.getvalue())
    there = Folder("train", DataSettings(path=str(tmp_path / "files")), val_share=0)
    crop = RandomCropFlip(AugmentSettings(), (20, 20))
    for epoch in range(5):
        one, two = (ImageDataset(images, crop, 0)[(epoch, 0)].image_CHW for images in (here, there))
        assert torch.equal(one, two)


def test_packed_jpeg_refuses_what_a_jpeg_file_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.zeros((3, 4, 4), np.uint16))
    with pytest.raises(ValueError, match=r"--store jpeg .*a\.npy is an array of 3 channels of uint16: use --store pix"):
        packed(tmp_path / "images", tmp_path / "packed", PackSettings(store="jpeg"), channels=3)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"short_side": -1}, "--short-side is -1"),
        ({"size": (0, 32)}, "--size is 0 32: a height and a width in pixels"),
        ({"size": (32,)}, "--size is 32: a height and a width in pixels"),
        ({"quality": 0}, "--quality is 0"),
        ({"workers": -1}, "--workers is"),
    ],
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
    folder = Folder("train", shared, val_share=0)
    report = pack({"train": folder, "val": Folder("val", shared, val_share=0)}, tmp_path / "packed", AS_IS, quiet)
    assert [name for name, _ in report.broken] == [str(root / "four" / "digit-005.png")]
    assert "digit-005.png" in (tmp_path / "packed" / LEFT_OUT).read_text()
    here = source(tmp_path / "packed", val_share=0)
    indices = [index for index in range(12) if index != 5]
    assert here.labels.tolist() == folder.labels[indices].tolist()
    assert [here.describe(row) for row in range(11)] == [folder.describe(index) for index in indices]
    assert torch.equal(pixels(here, 5), pixels(folder, 6))


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
    with pytest.raises(ValueError, match="exists and is not empty"):
        packed(tmp_path / "images", tmp_path / "images")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_packing_resizes_around_missing_pixels(dtype: str, tmp_path: Path) -> None:
    """No value that is stored is a mixture of the number that marks missing pixels and of others."""
    image_HW = np.full((64, 64), 100, dtype)
    image_HW[:32, :32] = 60000
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", image_HW)
    source = Folder("train", DataSettings(path=str(tmp_path / "in"), channels=1, nodata=60000), val_share=0)
    empty = Folder("val", DataSettings(path=str(tmp_path / "in"), channels=1, nodata=60000), val_share=0)
    pack({"train": source, "val": empty}, tmp_path / "out", PackSettings(short_side=16), lambda count: None)
    packed = Packed("train", DataSettings(path=str(tmp_path / "out"), channels=1), val_share=0).read(0).numpy().round(3)
    assert set(np.unique(packed)) == {100, 60000}
    assert (packed[0, :8, :8] == 60000).all()
    assert (packed[0, 10:, 10:] == 100).all()
