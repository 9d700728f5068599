"""Kinds: a folder of mixed kinds says what it holds, in numbers; with and without an index."""

from pathlib import Path

import pytest
from processes import TINY, call
from small_data import write_digits

from mim.data.loading.dataset import ImageDataset
from mim.data.loading.description import describe_files
from mim.data.settings import DataSettings
from mim.data.sources import tree_index
from mim.data.sources.folder import Folder
from mim.data.sources.kinds import kind_of
from mim.data.sources.subset import Subset


def folder(root: Path) -> Path:
    """7 images of three kinds, and 8 other files."""
    for name in ("a/1.jpg", "a/2.JPG", "a/b/3.jpg", "c/4.png", "c/5.tif", "6.jpg", "7.tif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name in ("a/1.xml", "a/2.XML", "c/3.xml", "notes.txt", "README", "c/IM.0001", "c/IM.0002", "x.y z"):
        (root / name).write_bytes(b"")
    for name in (".hidden.jpg", ".git/config", "a/.DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    return root


TEXT = "4 .jpg, 2 .tif, 1 .png; 8 files of other kinds left out (4 no ending, 3 .xml, 1 .txt)"


def source(path: Path, split: str = "train", **keys: object) -> Folder:
    return Folder(split, DataSettings(path=str(path)), **keys)


def test_folder_says_what_it_holds(tmp_path: Path) -> None:
    images = source(folder(tmp_path / "all"), val_share=0)
    assert len(images) == 7
    assert images.contents == TEXT
    assert Subset(images, [1, 2]).contents == TEXT
    write_digits(tmp_path / "one", 3)
    assert source(tmp_path / "one").contents == "3 .png"
    (tmp_path / "one" / "link.png").symlink_to(tmp_path / "one" / "digit-000.png")
    (tmp_path / "one" / "link.md").symlink_to(tmp_path / "all" / "notes.txt")
    assert source(tmp_path / "one").contents == "4 .png; 1 file of other kinds left out (1 .md)"


def test_index_keeps_what_a_folder_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_index, "LEAST", 1)
    monkeypatch.setattr("mim.data.sources.tree.SETTLED_NS", 0)
    root = folder(tmp_path / "all")
    assert source(root, val_share=0).contents == TEXT
    assert (tmp_path / ".all.mim-index.npz").exists()
    monkeypatch.setattr("mim.data.sources.tree._scan", None)  # what is not listed anew is not counted anew
    assert source(root, val_share=0).contents == TEXT


def test_many_kinds_are_summed(tmp_path: Path) -> None:
    write_digits(tmp_path, 1)
    for number in range(12):
        (tmp_path / f"a.x{number:02d}").write_bytes(b"")
    named = ", ".join(f"1 .x{number:02d}" for number in range(8))
    assert source(tmp_path).contents == f"1 .png; 12 files of other kinds left out ({named}, 4 of 4 more kinds)"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.JPG", ".jpg"), ("a.tar.gz", ".gz"), ("a", "no ending"), ("a.1", "no ending"), ("a.b,c", "no ending"),
     ("a.\udcff", "no ending"), ("a.", "no ending")],
)  # fmt: skip
def test_kind_of_a_file(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_start_says_the_files_of_both_splits(tmp_path: Path) -> None:
    write_digits(tmp_path / "train", 3)
    write_digits(tmp_path / "val", 2, suffix=".bmp")

    def data(split: str, **keys: object) -> ImageDataset:
        return ImageDataset(source(tmp_path, split, **keys), lambda stored, seed: stored, 0)

    assert describe_files(data("train"), data("val")) == {"files": "3 .png; held out: 2 .bmp"}
    whole = {"val_share": 0.5}
    (tmp_path / "val").rename(tmp_path / "other")
    (tmp_path / "train").rename(tmp_path / "images")
    assert describe_files(data("train", **whole), data("val", **whole)) == {"files": "3 .png, 2 .bmp"}
    listed = ImageDataset(Folder("train", DataSettings(path=str(tmp_path))), lambda stored, seed: stored, 0)
    listed.source.contents = ""
    assert describe_files(listed, listed) == {}


@pytest.mark.slow
def test_run_says_what_its_folder_holds_before_it_starts(tmp_path: Path) -> None:
    write_digits(tmp_path / "images", 24)
    (tmp_path / "images" / "labels.csv").write_text("")
    keys = {"DATA.name": "folder", "DATA.path": tmp_path / "images", "DATA.batch_size": 8, "TRAIN.batch": 8}
    code, text = call(tmp_path / "run", {**TINY, **keys})
    assert code == 0, text
    assert "24 .png; 1 file of other kinds left out (1 .csv)" in " ".join(text.split())
