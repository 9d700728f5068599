"""Folder: which files are found, in which order, with which labels, and which of them are held out."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_data import digit, write_digits

from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder

CLASSES = ("five", "four", "three")


def folder(path: Path, split: str = "train", **keys: object) -> Folder:
    return Folder(split, DataSettings(path=str(path), channels=1), **keys)


def names(source: Folder, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in source.paths]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three class folders of four digits."""
    for number, name in enumerate(CLASSES):
        write_digits(tmp_path / "images" / name, 4, first=4 * number)
    return tmp_path / "images"


# -------------------------------------------------------------------- layouts and labels


def test_folder_class_folders_give_labels(classes: Path) -> None:
    source = folder(classes, val_share=0)
    assert source.classes == CLASSES
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.labels.dtype == np.int64
    assert [path.parent.name for path in source.paths] == [CLASSES[label] for label in source.labels]


def test_folder_reads_the_file_it_names(classes: Path) -> None:
    source = folder(classes, val_share=0)
    for index in (0, 5, 11):
        assert source.describe(index) == str(source.paths[index])
        number = int(source.paths[index].stem.removeprefix("digit-"))
        assert np.array_equal(np.asarray(source.read(index)), np.asarray(digit(number)))


def test_folder_flat_folder_has_no_labels(tmp_path: Path) -> None:
    write_digits(tmp_path, 5)
    source = folder(tmp_path, val_share=0)
    assert len(source) == 5
    assert source.labels is None
    assert source.classes == ()


def test_folder_single_class_folder_has_no_labels_under_auto(tmp_path: Path) -> None:
    write_digits(tmp_path / "all", 5)
    assert folder(tmp_path, val_share=0).labels is None
    assert folder(tmp_path, val_share=0, labels="folders").labels.tolist() == [0] * 5


def test_folder_mixed_depths_have_no_labels_under_auto(classes: Path) -> None:
    write_digits(classes, 1, first=20)
    assert folder(classes, val_share=0).labels is None
    assert len(folder(classes, val_share=0)) == 13
    with pytest.raises(ValueError, match=r"digit-020\.png has no label.*Pretraining needs .*DATA\.labels none$"):
        folder(classes, labels="folders")


def test_folder_nested_folders_have_labels_only_when_asked(tmp_path: Path) -> None:
    for number, name in enumerate(("a/north", "a/south", "b/north")):
        write_digits(tmp_path / name, 2, first=2 * number)
    assert folder(tmp_path, val_share=0).labels is None
    source = folder(tmp_path, val_share=0, labels="folders")
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_folder_labels_none_ignores_class_folders(classes: Path) -> None:
    source = folder(classes, val_share=0, labels="none")
    assert source.labels is None
    assert len(source) == 12


def test_folder_order_is_sorted_whatever_order_files_were_made_in(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    for numbers, root in ((order, tmp_path / "one"), (order[::-1], tmp_path / "two")):
        for number in numbers.tolist():
            write_digits(root / f"class-{number % 3}", 1, first=number)
    one, two = folder(tmp_path / "one", val_share=0), folder(tmp_path / "two", val_share=0)
    assert names(one, tmp_path / "one") == names(two, tmp_path / "two")
    assert names(one, tmp_path / "one") == sorted(names(one, tmp_path / "one"))


def test_folder_takes_every_kind_of_picture_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    pictures = ["a.png", "b.JPG", "c.jpeg", "d.bmp", "e.webp", "f.TIF", "g.gif", "h.ppm"]
    for name in pictures:
        digit().save(tmp_path / name)
    np.save(tmp_path / "i.npy", np.asarray(digit()))
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "noextension").write_text("no picture")
    source = folder(tmp_path, val_share=0)
    assert names(source, tmp_path) == [*pictures, "i.npy"]
    for index in range(len(source)):
        source.read(index)


def test_folder_skips_hidden_files_and_folders(classes: Path) -> None:
    before = folder(classes, val_share=0).paths
    write_digits(classes / ".thumbnails", 2)
    digit().save(classes / "five" / "._digit-000.png")
    source = folder(classes, val_share=0)
    assert source.paths == before
    assert source.classes == CLASSES


# -------------------------------------------------------------------- splits


def test_folder_train_and_val_folders_are_the_splits(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a", "train/b", "train/c", "val/b", "val/c")):
        write_digits(tmp_path / name, 2, first=2 * number)
    train, val = folder(tmp_path), folder(tmp_path, "val")
    assert {name.split("/")[0] for name in names(train, tmp_path)} == {"train"}
    assert {name.split("/")[0] for name in names(val, tmp_path)} == {"val"}
    assert train.classes == val.classes == ("a", "b", "c")
    assert val.labels.tolist() == [1, 1, 2, 2]


def test_folder_train_folder_alone_gives_its_share(tmp_path: Path) -> None:
    write_digits(tmp_path / "train", 20)
    train, val = folder(tmp_path, val_share=0.1), folder(tmp_path, "val", val_share=0.1)
    assert len(train) + len(val) == 20
    assert 1 <= len(val) <= 6
    assert not set(train.paths) & set(val.paths)


def test_folder_unknown_label_of_held_out_images_is_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/dgo"):
        write_digits(tmp_path / name, 1)
    assert len(folder(tmp_path)) == 2
    assert folder(tmp_path, "val").labels is None  # under auto, folders need not be classes
    with pytest.raises(ValueError, match=r"'dgo', which no training image has: did you mean 'dog'\?"):
        folder(tmp_path, "val", labels="folders")


def test_folder_unknown_label_of_a_lone_held_out_class_is_refused(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cow"):
        write_digits(tmp_path / name, 1)
    with pytest.raises(ValueError, match="'cow'"):
        folder(tmp_path, "val", labels="folders")


def test_folder_val_path_names_held_out_images_elsewhere(classes: Path, tmp_path: Path) -> None:
    for name in ("five", "three"):
        write_digits(tmp_path / "elsewhere" / name, 2, first=30)
    keys = {"val_path": str(tmp_path / "elsewhere"), "val_share": 0.5}
    train, val = folder(classes, **keys), folder(classes, "val", **keys)
    assert len(train) == 12
    assert names(val, tmp_path / "elsewhere") == [
        *("five/digit-030.png", "five/digit-031.png", "three/digit-030.png", "three/digit-031.png")
    ]
    assert val.labels.tolist() == [0, 0, 2, 2]


def test_folder_val_path_goes_before_a_val_folder(tmp_path: Path) -> None:
    write_digits(tmp_path / "data" / "train", 3)
    write_digits(tmp_path / "data" / "val", 2)
    write_digits(tmp_path / "other", 1)
    assert len(folder(tmp_path / "data", "val")) == 2
    assert len(folder(tmp_path / "data", "val", val_path=str(tmp_path / "other"))) == 1


def test_folder_never_trains_on_a_val_path_that_lies_inside_it(classes: Path) -> None:
    write_digits(classes / "held", 3, first=30)
    keys = {"val_path": str(classes / "held")}
    train, val = folder(classes, **keys), folder(classes, "val", **keys)
    assert len(val) == 3
    assert not set(train.paths) & set(val.paths)


def test_folder_val_share_splits_without_overlap_or_loss(classes: Path) -> None:
    everything = folder(classes, val_share=0).paths
    for share in (0.01, 0.25, 0.5, 0.9):
        train, val = folder(classes, val_share=share), folder(classes, "val", val_share=share)
        assert sorted([*train.paths, *val.paths]) == sorted(everything)
        assert not set(train.paths) & set(val.paths)
        assert len(val) > 0
        assert train.classes == val.classes == CLASSES
        for source in (train, val):
            assert [CLASSES[label] for label in source.labels] == [path.parent.name for path in source.paths]


def test_folder_val_share_is_about_that_share(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"img_{number:04d}.png").touch()
    for share in (0.05, 0.2):
        count = len(folder(tmp_path, "val", val_share=share))
        assert abs(count - 1000 * share) <= 4 * math.sqrt(1000 * share * (1 - share))


def test_folder_val_share_depends_on_names_and_not_on_where_the_folder_lies(classes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "moved" / "here"
    shutil.copytree(classes, copy)
    one, two = folder(classes, "val", val_share=0.3), folder(copy, "val", val_share=0.3)
    assert names(one, classes) == names(two, copy)


def test_folder_val_share_file_that_joins_or_leaves_moves_no_other(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"img_{number:04d}.png").touch()
    before = set(folder(tmp_path, "val", val_share=0.2).paths)
    moved = 0
    for number in range(100, 140):
        joined = tmp_path / f"img_{number:04d}.png"
        joined.touch()
        moved += len((set(folder(tmp_path, "val", val_share=0.2).paths) ^ before) - {joined})
        joined.unlink()
    assert moved == 0, f"40 files that joined a folder of 100, one at a time, moved {moved} others between the splits"


def test_folder_val_share_zero_holds_none_out(classes: Path) -> None:
    assert len(folder(classes, val_share=0)) == 12
    assert len(folder(classes, "val", val_share=0)) == 0


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_folder_val_share_out_of_range_is_refused(classes: Path, share: float) -> None:
    with pytest.raises(ValueError, match=rf"DATA\.val_share is {share}"):
        folder(classes, val_share=share)


# -------------------------------------------------------------------- list files


def test_folder_list_file_names_images_relative_to_itself(classes: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("images/three/digit-008.png\n\nimages/five/digit-001.png\n")
    source = folder(listed, val_share=0)
    assert source.paths == [classes / "three" / "digit-008.png", classes / "five" / "digit-001.png"]
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(digit(8)))


def test_folder_list_file_takes_absolute_paths_and_spaces(tmp_path: Path) -> None:
    (path,) = write_digits(tmp_path / "a folder", 1)
    listed = tmp_path / "lists" / "list.txt"
    listed.parent.mkdir()
    listed.write_text(f"{path}\n../a folder/digit-000.png\n")
    source = folder(listed, val_share=0)
    assert [path.resolve() for path in source.paths] == [path.resolve()] * 2


def test_folder_list_file_gives_labels_after_a_tab(tmp_path: Path) -> None:
    write_digits(tmp_path, 3)
    listed = tmp_path / "list.txt"
    listed.write_text("digit-000.png\tzero\ndigit-001.png\tone\ndigit-002.png\tzero\n")
    source = folder(listed, val_share=0)
    assert source.classes == ("one", "zero")
    assert source.labels.tolist() == [1, 0, 1]
    assert folder(listed, val_share=0, labels="none").labels is None


def test_folder_list_file_with_some_labels_missing_has_none(tmp_path: Path) -> None:
    write_digits(tmp_path, 2)
    listed = tmp_path / "list.txt"
    listed.write_text("digit-000.png\tzero\ndigit-001.png\n")
    assert folder(listed, val_share=0).labels is None


def test_folder_list_files_for_both_splits(tmp_path: Path) -> None:
    write_digits(tmp_path, 4)
    (tmp_path / "train.txt").write_text("digit-000.png\ta\ndigit-001.png\tb\n")
    (tmp_path / "val.txt").write_text("digit-003.png\tb\n")
    (tmp_path / "bad.txt").write_text("digit-003.png\tc\n")
    val = folder(tmp_path / "train.txt", "val", val_path=str(tmp_path / "val.txt"))
    assert val.labels.tolist() == [1]
    with pytest.raises(ValueError, match="label 'c', which no training image has"):
        folder(tmp_path / "train.txt", "val", val_path=str(tmp_path / "bad.txt"))


def test_folder_list_file_gives_its_share(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"img_{number:03d}.png\n" for number in range(40)))
    train, val = folder(tmp_path / "list.txt"), folder(tmp_path / "list.txt", "val")
    assert len(train) + len(val) == 40
    assert not set(train.paths) & set(val.paths)
    assert len(val) > 0


# -------------------------------------------------------------------- what cannot be


def test_folder_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DATA\.path is empty"):
        Folder("train", DataSettings())


def test_folder_missing_paths_are_named(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATA\.path .*nowhere does not exist"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"DATA\.val_path .*nowhere does not exist"):
        folder(classes, "val", val_path=str(tmp_path / "nowhere"))


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no images.*\.jpg"):
        folder(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no images"):
        folder(tmp_path / "empty.txt")
