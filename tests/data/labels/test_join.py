"""LABELS.file: the rows of a table and the images of a data set, and what a user is told where they do not fit."""

from pathlib import Path

import numpy as np
import pytest
from label_files import join, labels_by_name, sources, write_images, write_table
from small_data import logged, write_digits

from mim.data.labels.join import join_labels
from mim.data.labels.settings import LabelSettings

ANIMALS = [f"digit-{number:03d}.png,{'cat' if number % 3 else 'dog'}" for number in range(8)]
EXPECTED = {f"digit-{number:03d}": "cat" if number % 3 else "dog" for number in range(8)}


@pytest.fixture(autouse=True)
def warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A run in the same process may have turned on what is only told."""
    caplog.set_level("WARNING", logger="mim")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def table(folder: Path, rows: list[str] = ANIMALS, header: str = "path,class") -> Path:
    return write_table(folder, header, rows)


# ---------------------------------------------------------------- which row belongs to which image


@pytest.mark.parametrize(
    ("place", "path_of"),
    [
        ("images", "{stem}.png"),  # relative to the folder of the table
        (".", "images/{stem}.png"),
        ("elsewhere", "{stem}.png"),  # relative to DATA.path
        ("elsewhere", "{root}/{stem}.png"),
        ("elsewhere", "/old/disk/images/{stem}.png"),  # folder and name
        ("elsewhere", "/old/disk/{stem}.png"),  # name
        ("elsewhere", r"D:\scans\{stem}.png"),
        ("elsewhere", "{stem}"),
        ("elsewhere", "raw/{stem}.dcm"),
    ],
)
def test_join_finds_images_by_their_paths(tmp_path: Path, images: Path, place: str, path_of: str) -> None:
    rows = [f"{path_of.format(stem=row.split('.')[0], root=images)},{row.rsplit(',')[-1]}" for row in reversed(ANIMALS)]
    train, held_out = join(images, file=table(tmp_path / place, rows))
    assert labels_by_name(train, held_out) == EXPECTED
    assert len(held_out) > 0
    assert train.label_spec == held_out.label_spec
    assert {train.describe(index) for index in range(len(train))} == {
        source.describe(index) for source in sources(images)[:1] for index in range(len(source))
    }


def test_join_keeps_equal_names_in_two_folders_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_digits(tmp_path / "images" / name, 2)
    rows = [f"moved/{name}/digit-00{number}.png,{name}{number}" for name in "ab" for number in (0, 1)]
    train, _ = join(tmp_path / "images", val_share=0, file=table(tmp_path / "other", rows))
    names = [train.label_spec.names[label] for label in train.labels]
    assert names == ["a0", "a1", "b0", "b1"]
    with pytest.raises(
        ValueError, match=r"line 2: 'digit-000\.png' is the name of several images, such as .*a/digit.*b/"
    ):
        join(tmp_path / "images", val_share=0, file=table(tmp_path / "other", ["digit-000.png,x", "digit-001.png,y"]))


def test_join_says_how_it_compared_and_what_it_decided(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mim")
    with logged() as lines:
        train, held_out = join(images, file=table(images))
    assert "8 rows name images, relative to the folder of the table" in lines[0]
    counts = f"{len(train)} training and {len(held_out)} held-out images (as the data set is split)"
    assert lines[1] == f"labels: 2 classes, cat, dog; {counts}"


def test_join_without_keys_gives_the_same_sources(images: Path) -> None:
    train, held_out = sources(images)
    for settings in (LabelSettings(), LabelSettings(kind="class", per_class=3, balance=True)):
        assert join_labels(train, held_out, settings) == (train, held_out)


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("rows", "header", "keys", "message"),
    [
        (ANIMALS, "file,class", {}, r"LABELS\.path_column path is no column of \S*labels\.csv: .*class, file"),
        (ANIMALS, "path,class", {"columns": ("kind",)}, r"LABELS\.columns kind is no column of .*class, path"),
        (ANIMALS, "path,class", {"group": "patient"}, r"LABELS\.group patient is no column"),
        ([f"{row},1" for row in ANIMALS], "path,class,age", {}, r"2 columns that may be labels, class, age"),
        (
            [*ANIMALS, "gone.png,cat"],
            "path,class",
            {},
            r"1 of 9 rows name no image .*line 10, 'gone\.png'.*absent skip",
        ),
        (
            ["x.png,cat"],
            "path,class",
            {},
            r"no row of \S*labels\.csv names an image: \S* line 2 has 'x\.png', and the fi",
        ),
        (
            ANIMALS[:6],
            "path,class",
            {},
            r"2 of 8 images have no row in \S*, such as \S*digit-006\.png.*unlabelled skip",
        ),
        (
            [*ANIMALS[:7], "digit-007.png,"],
            "path,class",
            {},
            r"1 of 8 images have no label in column class, .*line 9 for",
        ),
        (
            [*ANIMALS, "digit-001.png,dog"],
            "path,class",
            {},
            r"line 3 and line 10 both name \S*-001\.png, .*'cat' and 'dog",
        ),
        (["digit-000.png,"], "path,class", {"unlabelled": "skip"}, r"no image has a label"),
        (
            [f"{row},x" for row in ANIMALS],
            "path,class,s",
            {"columns": ("class",), "split_column": "s"},
            r"'x' is no split",
        ),
        (
            [f"{row}," for row in ANIMALS],
            "path,class,g",
            {"columns": ("class",), "group": "g"},
            r"line \d+ has no group in",
        ),
    ],
)
def test_join_refuses_what_does_not_fit(images: Path, rows: list[str], header: str, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join(images, file=table(images, rows, header), **keys)


def test_join_leaves_out_what_it_may(images: Path) -> None:
    rows = ["digit-000.png,", *ANIMALS[1:6], "gone.png,cat"]
    with logged() as lines:
        train, held_out = join(images, file=table(images, rows), unlabelled="skip", absent="skip")
    assert labels_by_name(train, held_out) == {key: EXPECTED[key] for key in list(EXPECTED)[1:6]}
    assert [line.rpartition(":")[2] for line in lines[:3]] == [" they are left out"] * 3
    assert "1 of 7 rows name no image" in lines[0]
    assert "2 of 8 images have no row" in lines[1]
    assert "1 of 8 images have no label" in lines[2]


def test_join_counts_a_repeated_row_once_and_warns(images: Path) -> None:
    with logged() as lines:
        splits = join(images, file=table(images, [*ANIMALS, ANIMALS[2]]))
    assert labels_by_name(*splits) == EXPECTED
    assert "1 rows repeat another one, such as line 10: they count once" in lines[0]


def test_join_warns_of_classes_with_one_image_and_without_images_in_a_split(images: Path) -> None:
    train, held_out = sources(images)
    names = [[Path(source.describe(row)).name for row in range(len(source))] for source in (train, held_out)]
    classes = {names[0][0]: "once", names[1][0]: "held", names[1][1]: "held"}
    rows = [f"{name},{classes.get(name, 'usual')}" for name in [*names[0], *names[1]]]
    with logged() as lines:
        train, _ = join(images, file=table(images, rows))
    assert train.label_spec.names == ("held", "once", "usual")
    assert lines == [
        "1 of 3 classes have one image in all: once",
        "1 of 3 classes have no training image: held",
        "1 of 3 classes have no held-out image: usual",
    ]


# ---------------------------------------------------------------- labels of other kinds


def test_join_gives_numbers_and_several_classes(images: Path) -> None:
    rows = [f"digit-{number:03d}.png,{number / 8},{number % 2},{number // 4}" for number in range(8)]
    file = table(images, rows, "path,wear,crack,dirt")
    train, held_out = join(images, file=file, columns=("wear",))
    assert train.label_spec.kind == "number"
    assert labels_by_name(train, held_out) == {f"digit-{n:03d}": [n / 8] for n in range(8)}
    train, held_out = join(images, file=file, columns=("crack", "dirt"))
    assert train.label_spec.kind == "classes"
    assert train.label_spec.names == ("crack", "dirt")
    assert labels_by_name(train, held_out) == {f"digit-{n:03d}": [n % 2, n // 4] for n in range(8)}
    assert train.classes == ()


def test_join_takes_numbers_and_several_classes_from_a_list_of_the_data_set(tmp_path: Path) -> None:
    """../shared/cases/12: a list whose labels are measurements."""
    write_images(tmp_path)
    for text_of, keys, kind, expected in (
        (lambda n: f"{n / 8:.4f}", {"kind": "number"}, "number", lambda n: [n / 8]),
        (lambda n: f"{n / 8:.4f}", {"bins": (0.5,)}, "class", lambda n: "<0.5" if n < 4 else ">=0.5"),
        (lambda n: "a,b" if n % 2 else "b", {"kind": "classes", "separator": ","}, "classes", lambda n: [n % 2, 1]),
    ):
        lines = "\n".join(f"digit-{number:03d}.png\t{text_of(number)}" for number in range(8))
        (tmp_path / "list.txt").write_text(lines)
        train, held_out = join(tmp_path / "list.txt", **keys)
        assert train.label_spec.kind == kind
        assert labels_by_name(train, held_out) == {f"digit-{n:03d}": pytest.approx(expected(n)) for n in range(8)}
    with pytest.raises(
        ValueError, match=r"LABELS\.kind number and .* need labels, and DATA\.name folder gives some images"
    ):
        join(tmp_path, kind="number")


def test_joined_sources_read_the_images_of_the_data_set(images: Path) -> None:
    train, held_out = join(images, file=table(images))
    for joined, own in zip((train, held_out), sources(images), strict=True):
        assert joined.split == own.split
        for index in range(len(own)):
            assert joined.read(index).tobytes() == own.read(index).tobytes()
    assert train.label_origin() == f"the labels in column class of LABELS.file {images}/labels.csv"
    assert np.array_equal(train.labels[:2], [1, 0])
