"""Odd names: listed, held out, read, packed and told of, whatever bytes they are; and list files of any making."""

import json
import logging
import os
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
from small_data import digit, logged, write_digits

from mim.data.decoding.images import BrokenImage
from mim.data.decoding.names import LONGEST, encoded, printable_name
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack

ODD = [
    "ünïcode-数字-٣.png".encode(),
    "combining-e\u0301.png".encode(),
    "composed-\u00e9.png".encode(),
    b"line\nbreak\r.png",
    b"tab\tand\x1b[31mescape.png",
    b"[red]markup[bold blink].png",
    b"'quotes\"and\\back$(slash)`.png",
    b"no-utf-8-\xff\xfe\xc3(.png",
    "left-\u202eto-right.png".encode(),
    "next\u2028line\x85.png".encode(),
    b"-leading-dash.png",
    b" leading and trailing space .png",
    b"%s %(name)s {0}.png",
    b"x" * 251 + b".png",
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with a digit under each odd name, and one odd folder with one more."""
    root = tmp_path / "images"
    deep = os.path.join(os.fsencode(root), b"f\xf6lder\nwith [b]odd[/b] name")
    os.makedirs(deep)
    for number, name in enumerate(ODD):
        digit(number).save(root / os.fsdecode(name))
    digit(99).save(os.path.join(os.fsdecode(deep), "inside.png"))
    return root


def folder(path: Path, split: str = "train", **keys: object) -> Folder:
    return Folder(split, DataSettings(path=str(path), channels=1), **{"val_share": 0, **keys})


def files(source: Folder, root: Path) -> set[bytes]:
    return {os.fsencode(os.path.relpath(path, root)) for path in source.paths}


def test_names_are_listed_and_read_whatever_bytes_they_are(odd: Path) -> None:
    source = folder(odd)
    assert files(source, odd) == {*ODD, b"f\xf6lder\nwith [b]odd[/b] name/inside.png"}
    for index in range(len(source)):
        assert source.read(index).size == (32, 32)


def test_names_are_held_out_by_the_hash_of_their_bytes(odd: Path) -> None:
    everything = files(folder(odd), odd)
    train, val = (files(folder(odd, split, val_share=0.4), odd) for split in ("train", "val"))
    assert val == {name for name in everything if zlib.crc32(name) / 2**32 < 0.4}
    assert train == everything - val
    assert val


def test_names_are_told_of_on_one_line_that_can_be_printed_logged_and_saved(odd: Path, tmp_path: Path) -> None:
    source = folder(odd)
    log = logging.Logger("names")
    log.addHandler(logging.FileHandler(tmp_path / "log.txt", encoding="utf-8"))
    names = [source.describe(index) for index in range(len(source))]
    for name in names:
        assert name.isprintable()
        name.encode()
        log.warning("cannot read %s", name)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == len(ODD) + 1
    assert json.loads(json.dumps(names)) == names
    assert len(set(names)) == len(ODD) + 1
    for part in (
        "ünïcode-数字-٣.png",
        "[red]markup[bold blink].png",
        r"line\nbreak\r.png",
        r"no-utf-8-\xff\xfe\xc3(.png",
    ):
        assert str(odd / part) in names


def test_shown_leaves_a_usual_name_and_shortens_an_endless_one() -> None:
    assert printable_name(Path("/data/class é/a b.jpg")) == "/data/class é/a b.jpg"
    assert printable_name("\udcff\n\x00") == r"\xff\n\x00"
    assert len(printable_name("é" * 10**6)) < LONGEST
    assert "(1,000,000 characters)" in printable_name("a" * 10**6)
    assert encoded("é\udcff") == b"\xc3\xa9\xff"


def test_names_of_packed_images_are_those_of_their_files(odd: Path, tmp_path: Path) -> None:
    source = folder(odd, labels="none")
    pack({"train": source, "val": folder(odd, "val")}, tmp_path / "packed", PackSettings(), lambda done: None)
    settings = DataSettings(path=str(tmp_path / "packed"), channels=1)
    packed = Packed("train", settings, val_share=0)
    assert [packed.describe(index) for index in range(len(packed))] == [source.describe(i) for i in range(len(source))]
    packed_val = Packed("val", settings, val_share=0.4)
    folder_val = folder(odd, "val", val_share=0.4)
    assert {packed_val.describe(i) for i in range(len(packed_val))} == {
        folder_val.describe(i) for i in range(len(folder_val))
    }


# -------------------------------------------------------------------- list files


def test_list_file_names_images_by_any_bytes_but_line_breaks_and_tabs(odd: Path, tmp_path: Path) -> None:
    named = [name for name in ODD if b"\n" not in name and b"\t" not in name]
    (odd / "list.txt").write_bytes(b"".join(name + b"\n" for name in named))
    source = folder(odd / "list.txt")
    assert [os.fsencode(path.name) for path in source.paths] == named
    for index in range(len(source)):
        source.read(index)
    (tmp_path / "labels.txt").write_bytes(b"".join(b"images/%s\tklasse \xe9\n" % name for name in named))
    assert folder(tmp_path / "labels.txt").classes == (r"klasse \xe9",)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfdigit-000.png\tone\ndigit-001.png\ttwo\n",
        b"digit-000.png\tone\r\ndigit-001.png\ttwo\r\n",
        b"\n\r\n  \ndigit-000.png\tone\n\n\t\n\ndigit-001.png\ttwo",
    ],
    ids=["byte-order-mark", "crlf", "empty-lines"],
)
def test_list_file_of_other_systems_is_read(tmp_path: Path, content: bytes) -> None:
    write_digits(tmp_path, 2)
    (tmp_path / "list.txt").write_bytes(content)
    source = folder(tmp_path / "list.txt")
    assert [path.name for path in source.paths] == ["digit-000.png", "digit-001.png"]
    assert source.classes == ("one", "two")


def test_list_file_with_megabytes_in_a_line_has_a_broken_image_there(tmp_path: Path) -> None:
    write_digits(tmp_path, 2)
    (tmp_path / "list.txt").write_bytes(b"digit-000.png\n" + b"y" * 3_000_000 + b"\ndigit-001.png\n")
    source = folder(tmp_path / "list.txt")
    assert len(source) == 3
    assert len(source.describe(1)) < 2 * LONGEST
    with pytest.raises(BrokenImage, match=r"^OSError: File name too long$"):
        source.read(1)


@pytest.mark.parametrize("content", [b"digit-000.png\ndigit\0.png\n", "digit-000.png\n".encode("utf-16")])
def test_list_file_with_zero_bytes_is_refused_with_the_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"DATA\.path .*list\.txt holds a zero byte in line [12]: .*UTF-8"):
        folder(tmp_path / "list.txt")
    digit().save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="zero byte"):
        folder(tmp_path / "image.png")


def test_list_file_that_names_what_is_no_file_has_broken_images_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "list.txt").write_text("pipe.png\nfolder.png\n/dev/zero\n../../nowhere.png\n")
    source = folder(tmp_path / "list.txt")
    for index in range(4):
        with pytest.raises(BrokenImage):
            source.read(index)


# -------------------------------------------------------------------- what lies among images


def test_folder_leaves_out_pipes_sockets_and_devices_with_one_warning(tmp_path: Path) -> None:
    write_digits(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.open(tmp_path, os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{here}/socket.jpg")
        os.close(here)
        with logged() as lines:
            source = folder(tmp_path)
            folder(tmp_path, "val")
    assert len(source) == 3
    (line,) = lines
    assert line.startswith("3 have the names of images and are pipes, sockets or devices")
    assert line.endswith(f"such as {tmp_path}/pipe.jpg")


def test_folder_called_like_an_image_is_a_folder(tmp_path: Path) -> None:
    write_digits(tmp_path / "one.jpg", 2)
    write_digits(tmp_path / "two.png", 2)
    source = folder(tmp_path)
    assert source.classes == ("one.jpg", "two.png")
    assert len(source) == 4


def test_folder_links_are_followed_loops_walked_once_and_dangling_ones_are_broken_images(tmp_path: Path) -> None:
    write_digits(tmp_path / "data" / "a", 2)
    write_digits(tmp_path / "elsewhere", 2, first=2)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to("..")
    (tmp_path / "data" / "a" / "here").symlink_to(".")
    (tmp_path / "data" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "data" / "self.png").symlink_to("self.png")
    (tmp_path / "data" / "link.png").symlink_to("a/digit-000.png")
    source = folder(tmp_path / "data")
    names = [path.relative_to(tmp_path / "data").as_posix() for path in source.paths]
    assert names == [
        *("gone.png", "link.png", "self.png", "a/digit-000.png", "a/digit-001.png"),
        *("b/digit-002.png", "b/digit-003.png"),
    ]
    for name in ("gone.png", "self.png"):
        with pytest.raises(BrokenImage):
            source.read(names.index(name))
    assert np.array_equal(np.asarray(source.read(names.index("link.png"))), np.asarray(digit(0)))


def test_folder_order_is_that_of_names_files_before_the_folders_beside_them(tmp_path: Path) -> None:
    for name in ("b/z.png", "b/a/c.png", "b.png", "a/x.png", "a.b/y.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        digit().save(tmp_path / name)
    names = [path.relative_to(tmp_path).as_posix() for path in folder(tmp_path).paths]
    assert names == ["b.png", "c.png", "a/x.png", "a.b/y.png", "b/z.png", "b/a/c.png"]


# -------------------------------------------------------------------- labels


def test_labels_that_look_alike_are_classes_of_their_own_and_named(tmp_path: Path) -> None:
    for number, name in enumerate(("Cat", "cat", "dog", "caf\u00e9", "cafe\u0301")):
        write_digits(tmp_path / name, 2, first=2 * number)
    with logged() as lines:
        source = folder(tmp_path)
        folder(tmp_path, "val")
    assert set(source.classes) == {"Cat", "cat", "dog", "caf\u00e9", "cafe\u0301"}
    assert len(np.unique(source.labels)) == 5
    assert len(lines) == 2
    assert "DATA.path: the labels 'Cat' and 'cat' look alike and are two classes" in lines


def test_labels_of_10_000_classes_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{n}.png\tclass {n % 10_000:05d}\n" for n in range(30_000)))
    (tmp_path / "val.txt").write_text("1.png\tclass 09999\n")
    (tmp_path / "bad.txt").write_text("1.png\tclass 10000\n")
    source = folder(tmp_path / "list.txt", val_path=str(tmp_path / "val.txt"))
    assert len(source.classes) == 10_000
    assert np.array_equal(np.bincount(source.labels), np.full(10_000, 3) - (np.arange(10_000) == 1))
    assert folder(tmp_path / "list.txt", "val", val_path=str(tmp_path / "val.txt")).labels.tolist() == [9999]
    with pytest.raises(ValueError, match="which no training image has") as caught:
        folder(tmp_path / "list.txt", "val", val_path=str(tmp_path / "bad.txt"))
    assert len(str(caught.value)) < 1000
