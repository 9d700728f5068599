"""Listing: the same images, order, labels and splits as a plain walk gives, whatever the tree; and what a list says."""

import gc
import os
import pickle
import pickletools
import random
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from small_data import RECIPE, logged, write_digits

from mim.build import build_data
from mim.config import parse_config
from mim.data.decoding.images import EXTENSIONS
from mim.data.settings import DataSettings
from mim.data.sources import list_file, tree, tree_index
from mim.data.sources.folder import Folder
from mim.data.sources.listing import Listing, list_images

NAMES = [
    "a",
    "b",
    "cat",
    "Cat",
    "é",
    "e\u0301",
    "\udcff\udcfe",
    "\ue000x",
    "x y",
    "-d",
    "a.b",
    "a-b",
    "n\nl",
    "one.jpg",
]
ENDINGS = [".jpg", ".JPG", ".png", ".npy", ".txt", "", ".tar.gif", "."]


def folder(path: Path, split: str = "train", **keys: object) -> Folder:
    return Folder(split, DataSettings(path=str(path), channels=1), **{"val_share": 0, **keys})


# -------------------------------------------------------------------- the same as a plain walk


def plain_walk(root: Path) -> list[tuple[Path, str | None]]:
    """Each image with the first folder below the root, by the simplest code."""
    entries, visited = list[tuple[Path, str | None]](), set[str]()

    def walk(path: Path, label: str | None) -> None:
        if (real := os.path.realpath(path)) in visited:
            return
        visited.add(real)
        content = sorted((each for each in path.iterdir() if each.name[0] != "."), key=lambda each: each.name)
        for each in content:
            if not each.is_dir() and each.suffix.lower() in EXTENSIONS and (each.is_file() or not each.exists()):
                entries.append((each, label))
        for each in content:
            if each.is_dir():
                walk(each, label or each.name)

    walk(root, None)
    return entries


def grow(rng: random.Random, root: Path, top: Path, depth: int = 0) -> None:
    """Files, links, pipes and folders of odd names; called again, it changes a tree."""
    root.mkdir(exist_ok=True)
    for name in rng.sample(NAMES, rng.randint(1, 6)):
        path = root / (rng.choice(["", "", "", "."]) + name + rng.choice(ENDINGS))
        if os.path.lexists(path):
            if path.is_file():
                path.unlink()
            continue
        kind = rng.random()
        if kind < 0.8:
            path.touch()
        elif kind < 0.85:
            os.mkfifo(path)
        else:
            path.symlink_to(rng.choice(["nowhere", "..", ".", "/dev/null", *top.rglob("*")]))
    for name in rng.sample(NAMES, rng.choice([0, 1, 2]) if depth else 3) if depth < 3 else ():
        if not os.path.lexists(root / name) or (root / name).is_dir():
            grow(rng, root / name, top, depth + 1)


def as_plain(listing: Listing) -> list[tuple[Path, str | None]]:
    labels = [listing.names[label] if label >= 0 else None for label in listing.label_N.tolist()]
    return list(zip(listing.paths(), labels, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_listing_is_that_of_a_plain_walk_also_from_an_index_while_the_tree_changes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_index, "LEAST", 1)
    monkeypatch.setattr(tree, "SETTLED_NS", 0)
    rng, root = random.Random(seed), tmp_path / "data"
    for _ in range(4):
        grow(rng, root, root)
        expected = plain_walk(root)
        if not expected:
            continue
        for index in (False, True, True):
            listing = list_images(root, "DATA.path", "any", warn=False, index=index)
            assert as_plain(listing) == expected
            names = [os.fsencode(os.path.relpath(path, root)) for path, _ in expected]
            assert listing.hash_N.tolist() == [zlib.crc32(name) for name in names]
            assert listing.names == tuple(sorted({label for _, label in expected if label is not None}))
        time.sleep(0.01)  # the clock of folder times goes in steps of a few ms


@pytest.mark.parametrize("key", ["relative", "absolute"])
def test_listing_of_a_list_hashes_each_path_relative_to_the_list(tmp_path: Path, key: str) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    paths = ["a/x.png", "../b/y.png", "./c//d/./e.png", "z.png", "..", "../lists", "", "q/../r.png", "a/"]
    if key == "absolute":
        paths = [f"{lists}/{path}" for path in paths] + ["/x.png", f"{tmp_path}/lists"]
    (lists / "list.txt").write_text("".join(f"{path}\tlabel\n" for path in paths))
    listing = list_images(lists / "list.txt", "DATA.path", "auto")
    assert list(listing.paths()) == [lists / path for path in paths]
    names = [os.path.relpath(lists / path, lists) for path in paths]
    assert listing.hash_N.tolist() == [zlib.crc32(name.encode()) for name in names]


# -------------------------------------------------------------------- once, and in arrays


def test_listing_is_made_once_for_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        write_digits(tmp_path / "data" / name, 2)
    (tmp_path / "list.txt").write_text("data/train/a/digit-000.png\ndata/train/b/digit-001.png\n")
    seen: list[str] = []
    scan, read = tree._scan, list_file.read_list
    monkeypatch.setattr(tree, "_scan", lambda path: seen.append(path) or scan(path))
    monkeypatch.setattr("mim.data.sources.listing.read_list", lambda *args: seen.append(str(args[0])) or read(*args))
    for path, count in ((tmp_path / "data", 6), (tmp_path / "data" / "train", 3), (tmp_path / "list.txt", 1)):
        seen.clear()
        cfg = parse_config(RECIPE, {"DATA.name": "folder", "DATA.path": str(path), "DATA.val_share": 0.5})
        train, val = build_data(cfg)
        assert len(train) + len(val) > 0
        assert len(seen) == len(set(seen)) == count
        seen.clear()
        build_data(cfg)  # nothing stays from the time before
        assert len(seen) == count


def test_listing_has_no_python_object_an_image_and_is_small_where_it_is_sent(tmp_path: Path) -> None:
    """Objects would be copied by each loader process that touches them, and be slow to send to it."""
    sizes, counts = [], []
    for images in (100, 1100):
        (tmp_path / f"{images}.txt").write_text("".join(f"class-{n % 10}/img-{n:06d}.jpg\n" for n in range(images)))
        content = pickle.dumps(folder(tmp_path / f"{images}.txt"))
        sizes.append(len(content))
        counts.append(sum(1 for _ in pickletools.genops(content)))
    assert counts[0] == counts[1]
    assert (sizes[1] - sizes[0]) / 1000 < 60  # bytes an image: the name has 14, and numbers 36


# -------------------------------------------------------------------- labels of lists


def list_folder(tmp_path: Path, lines: list[str], **keys: object) -> Folder:
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder(tmp_path / "list.txt", **keys)


@pytest.mark.parametrize("prefix", ["/data/images/", "images/", "../", ""])
def test_list_without_labels_takes_class_folders_as_a_folder_does(tmp_path: Path, prefix: str) -> None:
    lines = [f"{prefix}{name}" for name in ("dog/1.png", "cat/1.png", "dog/2.png")]
    for labels in ("auto", "folders"):
        source = list_folder(tmp_path, lines, labels=labels)
        assert source.classes == ("cat", "dog")
        assert source.labels.tolist() == [1, 0, 1]
        assert source.label_origin() == f"the class folders of DATA.path {tmp_path / 'list.txt'}"
    assert list_folder(tmp_path, lines, labels="none").labels is None


@pytest.mark.parametrize(
    "lines",
    [
        ["cat/1.png", "cat/2.png"],
        ["cat/1.png", "dog/1.png", "1.png"],
        ["a/cat/1.png", "b/dog/1.png"],
        ["a/cat/1.png", "dog/1.png"],
    ],
    ids=["one folder", "beside them", "two above", "two depths"],
)
def test_list_that_is_not_one_level_of_folders_has_no_labels_under_auto(tmp_path: Path, lines: list[str]) -> None:
    assert list_folder(tmp_path, lines).labels is None


def test_list_labels_folders_takes_the_folder_that_holds_the_image(tmp_path: Path) -> None:
    source = list_folder(tmp_path, ["a/cat/1.png", "/b/dog/1.png", "c/cat/2.png"], labels="folders")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"DATA\.labels folders: \S*/2\.png has no label: it needs a folder in its pa"):
        list_folder(tmp_path, ["cat/1.png", "2.png"], labels="folders")


def test_list_with_labels_takes_none_from_folders(tmp_path: Path) -> None:
    assert list_folder(tmp_path, ["cat/1.png\tx", "dog/1.png\ty"]).classes == ("x", "y")
    assert list_folder(tmp_path, ["cat/1.png\tx", "dog/1.png"]).labels is None
    with pytest.raises(ValueError, match=r"dog/1\.png has no label: it needs a label after a tab"):
        list_folder(tmp_path, ["cat/1.png\tx", "dog/1.png"], labels="folders")


def test_list_with_labels_for_some_images_names_one_without(tmp_path: Path) -> None:
    lines = [*(f"{number}.png\t{number % 2}" for number in range(8)), "lost.png", "8.png\t"]
    with logged() as said:
        assert list_folder(tmp_path, lines).labels is None
        list_folder(tmp_path, lines, split="val")
    path = tmp_path / "lost.png"
    assert said == [
        f"DATA.path: 2 of 10 images have no label, such as {path}: a split that holds one is read without labels"
    ]
    with logged() as said:
        list_folder(tmp_path, lines, labels="none")
        list_folder(tmp_path, ["1.png", "2.png"])
    assert said == []


def test_list_with_spaces_at_the_end_of_labels_says_that_two_look_alike(tmp_path: Path) -> None:
    with logged() as said:
        source = list_folder(tmp_path, ["1.png\tcat", "2.png\tcat ", "3.png\tdog", "4.png\tdog"])
    assert source.classes == ("cat", "cat ", "dog")
    assert said == ["DATA.path: the labels 'cat' and 'cat ' look alike and are two classes"]


def test_list_of_held_out_images_takes_the_classes_of_the_training_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_digits(tmp_path / "train" / name, 2)
    (tmp_path / "val.txt").write_text("elsewhere/dog/9.png\nelsewhere/dog/8.png\n")
    val = folder(tmp_path / "train", "val", val_path=str(tmp_path / "val.txt"))
    assert val.classes == ("cat", "dog")
    assert val.labels.tolist() == [1, 1]
    (tmp_path / "val.txt").write_text("elsewhere/cow/9.png\n")
    with pytest.raises(ValueError, match="'cow', which no training image has"):
        folder(tmp_path / "train", "val", val_path=str(tmp_path / "val.txt"))


def test_list_and_folder_of_held_out_images_leave_the_training_images(tmp_path: Path) -> None:
    """However the two name a file."""
    for name in ("a", "b"):
        write_digits(tmp_path / "data" / name, 3)
    (tmp_path / "val.txt").write_text(
        f"data/a/digit-001.png\n{tmp_path}/data/./a/digit-002.png\ndata//b/digit-000.png\n"
    )
    source = folder(tmp_path / "data", val_path=str(tmp_path / "val.txt"))
    names = [path.relative_to(tmp_path / "data").as_posix() for path in source.paths]
    assert names == ["a/digit-000.png", "b/digit-001.png", "b/digit-002.png"]
    assert source.labels.tolist() == [0, 1, 1]


# -------------------------------------------------------------------- cost, against torchvision


@pytest.mark.slow
def test_listing_costs_at_most_three_times_that_of_torchvision(tmp_path: Path) -> None:
    """Both splits, without an index, on the processor: the least of some turns."""
    from torchvision.datasets import ImageFolder

    for number in range(20_000):
        path = tmp_path / "train" / f"class-{number % 20}" / f"image-{number:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    cfg = parse_config(RECIPE, {"DATA.name": "folder", "DATA.path": str(tmp_path), "DATA.index": False})
    ours, theirs = [], []
    for _ in range(7):
        for make, times in ((lambda: build_data(cfg), ours), (lambda: ImageFolder(tmp_path / "train"), theirs)):
            start = time.process_time()
            make()
            times.append(time.process_time() - start)
    assert min(ours) <= 3 * min(theirs)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says what memory a process owns")
def test_loader_process_copies_no_memory_as_it_goes_through_the_images(tmp_path: Path) -> None:
    """In the second half of an epoch; the first pays for what each process needs once."""
    for number in range(20_000):
        path = tmp_path / f"class-{number % 20}" / f"image-{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    source, order = folder(tmp_path), np.random.default_rng(0).permutation(20_000)
    reading, writing = os.pipe()
    if os.fork() == 0:
        gc.disable()  # a collection would write into each object of the tests before this one
        owned = []
        for part in np.split(order, 4):
            for index in part.tolist():
                _ = source.paths[index], source.describe(index), source.labels[index]
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            owned.append(next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")))
        os.write(writing, repr(owned).encode())
        os._exit(0)
    os.wait()
    owned = [int(number) for number in os.read(reading, 1000).decode().strip("[]").split(",")]
    assert owned[3] - owned[1] < 512  # kB


def test_listing_warns_once_and_names_what_is_left_out(tmp_path: Path) -> None:
    write_digits(tmp_path / "data", 2)
    os.mkfifo(tmp_path / "data" / "pipe.jpg")
    with logged() as lines:
        build_data(parse_config(RECIPE, {"DATA.name": "folder", "DATA.path": str(tmp_path / "data")}))
    assert [line for line in lines if "pipe.jpg" in line] == lines
    assert len(lines) == 1
