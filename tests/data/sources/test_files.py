"""Images that a command names: files, folders and lists."""

from pathlib import Path

import pytest
from small_data import digit, write_digits

from mim.data.settings import DataSettings
from mim.data.sources.files import Files

SETTINGS = DataSettings(channels=1)


def named(*names: Path) -> list[str]:
    source = Files(names, SETTINGS)
    return [source.describe(index) for index in range(len(source))]


def test_files_are_those_of_folders_and_lists_each_once_in_the_order_of_the_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/train/b", "photos/val/a", "photos/c"):
        write_digits(Path(folder), 1)
    write_digits(Path("."), 2)
    (tmp_path / "photos" / "notes.csv").write_text("x")
    (tmp_path / "some.txt").write_text("digit-001.png\tthree\nphotos/c/digit-000.png")
    every = ["photos/c/digit-000.png", "photos/train/b/digit-000.png", "photos/val/a/digit-000.png"]
    assert named(Path("digit-001.png"), Path("photos"), Path("photos/c")) == ["digit-001.png", *every]
    assert named(Path("some.txt")) == [str(tmp_path / "digit-001.png"), str(tmp_path / "photos/c/digit-000.png")]


def test_files_read_what_is_named_whatever_its_ending(tmp_path: Path) -> None:
    digit(3).save(tmp_path / "upload", format="PNG")
    source = Files([tmp_path / "upload"], SETTINGS)
    assert source.labels is None
    assert source.read(0).tobytes() == digit(3).tobytes()


def test_files_name_what_does_not_exist_and_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.png does not exist: name images, folders of them, or a .txt list"):
        Files([tmp_path / "gone.png"], SETTINGS)
    with pytest.raises(ValueError, match="holds no images"):
        Files([tmp_path], SETTINGS)


def test_files_are_missing_where_all_that_were_there_are_gone(tmp_path: Path) -> None:
    paths = write_digits(tmp_path, 3)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    source = Files([tmp_path], SETTINGS)
    assert source.missing() == ""
    for path in paths:
        path.unlink()
    assert "none of 4 images tried is there" in source.missing()
    digit().save(paths[0])
    assert Files([tmp_path], SETTINGS).missing() == ""


def test_files_says_of_an_empty_list_what_a_list_has(tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"images\.txt holds no images: a list has the path of an image in each line"):
        Files([tmp_path / "images.txt"], SETTINGS)
