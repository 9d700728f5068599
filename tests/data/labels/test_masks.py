"""LABELS.masks: which mask belongs to which image, what its pixels mean, and masks that do not fit."""

from pathlib import Path

import numpy as np
import pytest
from label_files import NAMES, classes_of, join, write_mask, write_photographs
from PIL import Image
from small_data import logged

from mim.data.decoding.images import BrokenImage
from mim.data.labels.layouts import ADE20K, CITYSCAPES, VOC, mask_layout, voc_colour
from mim.data.labels.settings import LabelSettings
from mim.data.loading.readable import check_readable
from mim.data.sources.base import Source

COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)


@pytest.fixture(autouse=True)
def warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A run in the same process may have turned on what is only told."""
    caplog.set_level("WARNING", logger="mim")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_photographs(tmp_path / "images")


def train_of(folder: Path, masks: str = "masks", val_share: float = 0, **keys: object) -> Source:
    """The training images of folder/images with the masks of folder/masks."""
    names = {} if keys.get("layout") in ("voc", "ade20k", "cityscapes") else {"names": NAMES}
    return join(folder / "images", val_share, 3, masks=folder / masks, **names, **keys)[0]


def write_all(images: list[Path], name_of: str = "masks/{stem}.png") -> None:
    """A mask of three classes for each image."""
    for number, path in enumerate(images):
        write_mask(path.parent.parent / name_of.format(stem=path.stem), classes_of(number))


# ---------------------------------------------------------------- which mask


@pytest.mark.parametrize(
    ("name_of", "keys"),
    [
        ("masks/{stem}.png", {}),
        ("masks/{stem}.tif", {}),
        ("masks/train/{stem}.png", {}),
        ("masks/{stem}_mask.png", {"mask_suffix": "_mask"}),
        ("images/{stem}_mask.png", {"mask_suffix": "_mask", "masks": "images"}),
    ],
)
def test_masks_are_found_by_the_names_of_their_images(
    tmp_path: Path, images: list[Path], name_of: str, keys: dict
) -> None:
    write_all(images, name_of)
    train = train_of(tmp_path, **keys)
    assert [Path(train.describe(index)).name for index in range(len(train))] == [path.name for path in images]
    for index in range(4):
        assert np.array_equal(train.mask(index), classes_of(index))
        assert train.mask(index).dtype == np.int64
    assert (train.label_spec.kind, train.label_spec.names) == ("mask", NAMES)
    assert train.labels is None


def test_masks_of_equal_names_are_told_apart_by_folders(tmp_path: Path) -> None:
    for number, place in enumerate(("training/a", "training/b")):
        write_photographs(tmp_path / "images" / place, 1)
        write_mask(tmp_path / "masks" / place / "photo-0.png", classes_of(number))
    assert [train_of(tmp_path).mask(index).tolist() for index in (0, 1)] == [classes_of(n).tolist() for n in (0, 1)]
    train, _ = join(tmp_path / "images" / "training", 0, 3, masks=tmp_path / "masks", names=NAMES)
    assert np.array_equal(train.mask(1), classes_of(1))
    write_mask(tmp_path / "masks" / "training" / "a" / "photo-0.tif", classes_of(0))
    with pytest.raises(
        ValueError, match=r"a/photo-0\.png has several masks, such as .*photo-0\.png and .*photo-0\.tif"
    ):
        train_of(tmp_path)


def test_masks_may_be_split_by_a_table_of_groups(tmp_path: Path, images: list[Path]) -> None:
    write_all(images)
    (tmp_path / "g.csv").write_text("path,scene\n" + "".join(f"{path},{path.stem[-1] > '1'}\n" for path in images))
    keys = {"masks": tmp_path / "masks", "names": NAMES, "file": tmp_path / "g.csv", "group": "scene", "folds": 2}
    train, held_out = join(tmp_path / "images", 0, 3, **keys)
    assert [len(train), len(held_out)] == [2, 2]
    number = int(Path(held_out.describe(0)).stem[-1])
    assert np.array_equal(held_out.mask(0), classes_of(number))


def test_masks_that_are_missing_are_named_or_left_out(tmp_path: Path, images: list[Path]) -> None:
    write_all(images[:3])
    with pytest.raises(
        ValueError, match=r"1 of 4 images have no mask in LABELS\.masks \S*masks, such as \S*photo-3\.png"
    ):
        train_of(tmp_path)
    assert len(train_of(tmp_path, unlabelled="skip")) == 3
    with pytest.raises(ValueError, match=r"LABELS\.masks \S*gone is no folder"):
        train_of(tmp_path, masks="gone")
    with pytest.raises(ValueError, match=r"has no pictures with names that end with _x"):
        train_of(tmp_path, mask_suffix="_x")
    with pytest.raises(ValueError, match=r"all images of DATA\.path \S* are masks of LABELS\.masks"):
        train_of(tmp_path, masks="images")


# ---------------------------------------------------------------- what pixels mean


def masks_of(tmp_path: Path, numbers: np.ndarray | Image.Image, **keys: object) -> np.ndarray:
    """The classes of a mask with these pixels."""
    (image,) = write_photographs(
        tmp_path / "images",
        1,
        (numbers.height, numbers.width)[:2] if isinstance(numbers, Image.Image) else numbers.shape[:2],
    )
    path = tmp_path / "masks" / image.name
    path.parent.mkdir(exist_ok=True)
    (numbers if isinstance(numbers, Image.Image) else Image.fromarray(numbers)).save(path)
    return train_of(tmp_path, **keys).mask(0)


def row(*numbers: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array([numbers], dtype)


def test_mask_numbers_become_classes(tmp_path: Path) -> None:
    assert masks_of(tmp_path, row(0, 1, 2, 255)).tolist() == [[0, 1, 2, -1]]
    assert masks_of(tmp_path, row(0, 1, 3, 2), reduce_zero=True).tolist() == [[-1, 0, 2, 1]]
    assert masks_of(tmp_path, row(0, 255, 7, 9), values=(255, 0, 7), ignore=9).tolist() == [[1, 0, 2, -1]]
    assert masks_of(tmp_path, row(0, 1000, 7, 0, dtype=np.uint16), values=(7, 0, 1000)).tolist() == [[1, 2, 0, 1]]
    grey = np.repeat(row(0, 2, 1)[..., None], 3, axis=2)
    assert masks_of(tmp_path, grey).tolist() == [[0, 2, 1]]
    assert masks_of(tmp_path, np.array([[True, False]])).tolist() == [[1, 0]]
    assert masks_of(tmp_path, np.dstack([row(1, 2), row(255, 0)])).tolist() == [[1, 2]]  # with an alpha channel
    np.save(tmp_path / "masks" / "photo-0.npy", row(2, 1))
    (tmp_path / "masks" / "photo-0.png").unlink()
    assert train_of(tmp_path).mask(0).tolist() == [[2, 1]]


def test_mask_colours_become_classes(tmp_path: Path) -> None:
    palette = tuple(map(tuple, COLOURS.tolist()))
    keys = {"layout": "colours", "palette": palette}
    assert masks_of(tmp_path, COLOURS[None, [2, 0, 1, 1]], **keys).tolist() == [[2, 0, 1, 1]]
    ignoring = {**keys, "palette": (*palette, (9, 9, 9))}
    pixels = np.array([[[9, 9, 9], [128, 0, 0]]], np.uint8)
    assert masks_of(tmp_path, pixels, **ignoring).tolist() == [[-1, 1]]
    with pytest.raises(
        BrokenImage, match=r"photo-0\.png has the colour \[9, 9, 9\] \(row 0, column 0\), .* 3 of LABELS"
    ):
        masks_of(tmp_path, pixels, **keys)
    picture = Image.fromarray(row(5, 6, 5)).convert("P")
    picture.putpalette([0] * 15 + [0, 128, 0] + [128, 0, 0])
    assert masks_of(tmp_path, picture, **keys).tolist() == [[2, 1, 2]]  # by its colours, not its numbers
    assert masks_of(tmp_path, picture, values=(5, 4, 6)).tolist() == [[0, 2, 0]]


def test_mask_of_voc_is_read_from_numbers_and_from_colours(tmp_path: Path) -> None:
    numbers = row(0, 15, 20, 255)
    colours = np.array([[voc_colour(number) for number in numbers[0].tolist()]], np.uint8)
    assert colours[0, 1:].tolist() == [[192, 128, 128], [0, 64, 128], [224, 224, 192]]  # person, tvmonitor, border
    for pixels in (numbers, colours):
        assert masks_of(tmp_path, pixels, layout="voc").tolist() == [[0, 15, 20, -1]]
    assert (len(VOC), VOC[15], VOC[20]) == (21, "person", "tvmonitor")
    with pytest.raises(BrokenImage, match=r"has the number 21 \(row 0, column 1\)"):
        masks_of(tmp_path, row(0, 21), layout="voc")
    with pytest.raises(BrokenImage, match=r"has the colour \[1, 2, 3\] .* of the palette of VOC"):
        masks_of(tmp_path, np.array([[[1, 2, 3]]], np.uint8), layout="voc")


def test_mask_of_ade20k_begins_with_one(tmp_path: Path) -> None:
    assert masks_of(tmp_path, row(0, 1, 150), layout="ade20k").tolist() == [[-1, 0, 149]]
    assert (len(ADE20K), len(set(ADE20K))) == (150, 150)
    assert (ADE20K[0], ADE20K[12], ADE20K[20], ADE20K[149]) == ("wall", "person", "car", "flag")
    with pytest.raises(BrokenImage, match="has the number 151"):
        masks_of(tmp_path, row(0, 151), layout="ade20k")


def test_mask_of_cityscapes_has_its_19_classes_and_names(tmp_path: Path) -> None:
    write_photographs(tmp_path / "x", 1, (1, 4))[0].rename(tmp_path / "aachen_0_leftImg8bit.png")
    image = tmp_path / "images" / "train" / "aachen" / "aachen_0_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    (tmp_path / "aachen_0_leftImg8bit.png").rename(image)
    folder = tmp_path / "masks" / "train" / "aachen"
    write_mask(folder / "aachen_0_gtFine_labelIds.png", row(7, 33, 0, 6))
    write_mask(folder / "aachen_0_gtFine_labelTrainIds.png", row(0, 18, 255, 200))
    write_mask(folder / "aachen_0_gtFine_instanceIds.png", row(7, 33, 0, 6))
    for suffix in ("", "_gtFine_labelTrainIds"):
        train = train_of(tmp_path, layout="cityscapes", mask_suffix=suffix)
        assert train.mask(0).tolist() == [[0, 18, -1, -1]]
    assert train.label_spec.names == tuple(CITYSCAPES.values())
    assert (len(CITYSCAPES), train.label_spec.names[13]) == (19, "car")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"names": ()}, r"LABELS\.names is empty: with the layout index, name the classes"),
        ({"values": (0, 255)}, r"LABELS\.values has 2 numbers and LABELS\.names 3 classes"),
        ({"layout": "colours", "palette": ((0, 0, 0),)}, r"LABELS\.palette has 1 colours and LABELS\.names 3 classes"),
        ({"layout": "colours", "palette": ((0, 0, 0), (0, 0, 256), (1, 1, 1))}, r"has \[0, 0, 256\]: .* from 0 to 255"),
        ({"kind": "number"}, r"LABELS\.masks names masks, and LABELS\.kind is number"),
        ({"balance": True}, r"LABELS\.balance is for labels of kind class"),
        ({"layout": "voc"}, r"LABELS\.names has no effect"),
    ],
)
def test_mask_settings_that_do_not_fit_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSettings(**{"masks": "masks", "names": NAMES, **keys})


def test_mask_layout_of_every_number_is_a_class_ignored_or_refused() -> None:
    class_of = mask_layout(LabelSettings(masks="m", names=NAMES)).class_of_number
    assert class_of[[0, 1, 2, 255]].tolist() == [0, 1, 2, -1]
    assert set(np.delete(class_of, [0, 1, 2, 255]).tolist()) == {-2}


# ---------------------------------------------------------------- masks that do not fit, before a run


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (classes_of(0, (24, 24)), r"its mask has 24 x 24 pixels and the image 24 x 32 \(height x width\)"),
        (
            classes_of(0, classes=5),
            r"photo-2\.png has the number [34] .* 3 classes of LABELS\.layout index have .* 0, 1, 2",
        ),
        (COLOURS[classes_of(0)], r"photo-2\.png has colours, and LABELS\.layout is index: set it to colours"),
        (b"no picture", r"its mask \S*photo-2\.png: cannot identify"),
        (classes_of(0).astype(np.float32), r"holds float32, and classes are whole numbers"),
    ],
    ids=["size", "number", "colours", "damaged", "float"],
)
def test_masks_that_do_not_fit_are_refused_before_a_run(
    tmp_path: Path, images: list[Path], numbers: np.ndarray | bytes, message: str
) -> None:
    write_all(images)
    check_readable(train_of(tmp_path), "training")
    bad = tmp_path / "masks" / "photo-2.png"
    if isinstance(numbers, bytes):
        bad.write_bytes(numbers)
    elif numbers.dtype == np.float32:
        bad.unlink()
        np.save(bad.with_suffix(".npy"), numbers)
    else:
        write_mask(bad, numbers)
    with pytest.raises(
        ValueError, match=r"1 of 4 training masks .* do not fit, such as that of \S*photo-2\.png: its mask"
    ):
        check_readable(train_of(tmp_path), "training")
    with pytest.raises(ValueError, match=message):
        check_readable(train_of(tmp_path), "training")


def test_masks_without_a_pixel_with_a_class_are_named(tmp_path: Path, images: list[Path]) -> None:
    write_all(images)
    write_mask(tmp_path / "masks" / "photo-1.png", np.full((24, 32), 255, np.uint8))
    with logged() as lines:
        check_readable(train_of(tmp_path), "training")
    assert [line.startswith("1 of 4 training masks that were tried have no pixel with a class") for line in lines] == [
        True
    ]
    assert "photo-1.png" in lines[0]
