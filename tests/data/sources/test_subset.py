"""Fewer labels: as many of each class, the same ones for a seed, and a list that reads the same images back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import FINETUNE, call
from small_data import logged, write_digits

from mim.data.labels.settings import LabelSettings
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches, in_order
from mim.data.settings import DataSettings
from mim.data.sources.base import Source
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.sources.subset import Subset, few_labels
from mim.data.transforms import AugmentSettings, CentreCrop


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits("train", DataSettings(channels=1))


def folder(path: Path, **keys) -> Folder:
    return Folder("train", DataSettings(path=str(path), channels=1), **{"val_share": 0, **keys})


def few(source: Source, **keys) -> Source:
    return few_labels(source, LabelSettings(**keys))


def per_class(source: Source) -> list[int]:
    return np.bincount(source.labels).tolist()


@pytest.fixture
def uneven(tmp_path: Path) -> Folder:
    """Three classes of 12, 5 and 1 real digits."""
    for name, first, count in (("rare", 0, 1), ("common", 10, 12), ("some", 30, 5)):
        write_digits(tmp_path / "images" / name, count, first)
    return folder(tmp_path / "images")


# ---------------------------------------------------------------- which images


def test_few_labels_of_a_tenth_of_the_digits_are_14_a_class(digits: Digits) -> None:
    with logged() as lines:
        assert per_class(few(digits, share=0.1)) == [14] * 10
    assert lines == []


@pytest.mark.parametrize("count", [1, 7, 100])
def test_few_labels_are_the_number_a_class_asked_for(digits: Digits, count: int) -> None:
    assert per_class(few(digits, per_class=count)) == [count] * 10


def test_few_labels_are_at_least_one_a_class(digits: Digits) -> None:
    assert per_class(few(digits, share=1e-6)) == [1] * 10


def test_few_labels_are_different_images_in_the_order_of_the_data_set(digits: Digits) -> None:
    indices = few(digits, share=0.3).chosen
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] < indices[-1] < len(digits)


def test_few_labels_are_a_function_of_their_seed(digits: Digits) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = few(digits, share=0.1, seed=0).chosen
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert few(digits, share=0.1, seed=0).chosen == first
    other = few(digits, share=0.1, seed=1).chosen
    assert len(set(other) & set(first)) < 50  # of 140; 14 by chance


def test_few_labels_of_one_class_do_not_hang_on_another(uneven: Folder, tmp_path: Path) -> None:
    """A class keeps its images where another one joins or grows."""
    names = {uneven.describe(index) for index in few(uneven, per_class=4).chosen if uneven.labels[index] == 0}
    write_digits(tmp_path / "images" / "some", 20, first=60)
    write_digits(tmp_path / "images" / "zero", 20, first=90)
    grown = folder(tmp_path / "images")
    assert names == {grown.describe(index) for index in few(grown, per_class=4).chosen if grown.labels[index] == 0}


def test_few_labels_grow_by_images_that_join(digits: Digits) -> None:
    """More labels of a seed hold the fewer, so that a study of label counts compares like with like."""
    small, large = (set(few(digits, per_class=count).chosen) for count in (5, 20))
    assert small < large


def test_few_labels_take_each_image_of_a_class_alike(digits: Digits) -> None:
    """Over many seeds every image comes up: a class's first files are not preferred."""
    indices = np.flatnonzero(digits.labels == 3)
    times = np.zeros(len(digits))
    for seed in range(200):
        times[few(digits, per_class=10, seed=seed).chosen] += 1
    expected = 200 * 10 / len(indices)
    assert np.abs(times[indices] - expected).max() < 5 * expected**0.5


def test_few_labels_of_a_rare_class_are_all_it_has_with_a_warning(uneven: Folder) -> None:
    assert uneven.classes == ("common", "rare", "some")
    with logged() as lines:
        subset = few(uneven, per_class=5)
    assert per_class(subset) == [5, 1, 5]
    assert lines == ["class rare has 1 images, and LABELS asks for 5 of each class"]
    with logged() as lines:
        assert per_class(few(uneven, share=0.5)) == [3, 1, 3]
    assert len(lines) == 1


def test_few_labels_of_everything_are_the_source_itself(digits: Digits) -> None:
    assert few(digits) is digits
    assert few(digits, seed=3) is digits


def test_few_labels_of_unlabelled_images_are_refused(tmp_path: Path) -> None:
    write_digits(tmp_path, 4)
    with pytest.raises(ValueError, match=r"LABELS: the training images have no labels"):
        few(folder(tmp_path), share=0.5)
    assert few(folder(tmp_path)).labels is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"share": 0.0}, r"LABELS\.share is 0\.0"),
        ({"share": 1.5}, r"LABELS\.share is 1\.5"),
        ({"per_class": -1}, r"LABELS\.per_class is -1"),
        ({"seed": -1}, r"LABELS\.seed is -1"),
        ({"share": 0.1, "per_class": 3}, r"LABELS\.share 0\.1 and LABELS\.per_class 3: give one of them"),
    ],
)
def test_label_settings_out_of_range_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSettings(**keys)


# ---------------------------------------------------------------- the part as a source


def test_subset_reads_labels_and_describes_its_own_samples(digits: Digits) -> None:
    part = Subset(digits, [4, 900, 17])
    assert len(part) == 3
    assert part.classes == digits.classes
    assert part.labels.tolist() == [int(digits.labels[source_index]) for source_index in (4, 900, 17)]
    for index, source_index in enumerate((4, 900, 17)):
        assert np.array_equal(np.asarray(part.read(index)), np.asarray(digits.read(source_index)))
        assert part.describe(index) == digits.describe(source_index)
    assert Subset(part, [1, 1]).describe(1) == digits.describe(900)


def test_subset_makes_batches_like_any_source(digits: Digits) -> None:
    part = few(digits, per_class=2)
    data = ImageDataset(part, CentreCrop(AugmentSettings(), (16, 16)), 0)
    (batch,) = batches(data, in_order(range(20), 20), 0, False)
    assert batch.images_BCHW.shape == (20, 1, 16, 16)
    assert torch.bincount(batch.labels).tolist() == [2] * 10


def test_subset_lists_its_samples_with_their_class_names(digits: Digits, uneven: Folder) -> None:
    names = [f"digits train image {index}\t{digits.labels[index]}" for index in (4, 900)]
    assert Subset(digits, [4, 900]).listing().splitlines() == names
    for line, index in zip(Subset(uneven, [0, 12, 17]).listing().splitlines(), (0, 12, 17), strict=True):
        assert line == f"{uneven.paths[index]}\t{uneven.classes[uneven.labels[index]]}"


def test_subset_lists_numbers_where_classes_have_no_names(digits: Digits) -> None:
    part = Subset(digits, [4, 900])
    part.classes = ()
    assert part.listing().splitlines() == [f"digits train image {p}\t{digits.labels[p]}" for p in (4, 900)]


# ---------------------------------------------------------------- labelled.txt of a run

SMALL = {
    **{"ENCODER.width": 16, "ENCODER.depth": 1, "ENCODER.heads": 2, "DATA.batch_size": 2, "TRAIN.batch": 2},
    **{"TRAIN.epochs": 1, "LOG.tensorboard": False, "EVALUATE.confusion": False},
}


def trained(output: Path, keys: dict) -> list[str]:
    """The lines of labelled.txt of a short run."""
    code, text = call(output, SMALL | keys, FINETUNE)
    assert code == 0, text
    return (output / "labelled.txt").read_text().splitlines()


def assert_read_back(file: Path, source: Folder) -> None:
    """Asserts that a list gives the images and labels that were chosen of the whole."""
    listed, subset = folder(file), few(source, per_class=3, seed=2)
    assert listed.classes == source.classes
    assert listed.labels.tolist() == subset.labels.tolist()
    for index in range(len(subset)):
        assert np.array_equal(np.asarray(listed.read(index)), np.asarray(subset.read(index)))


def test_run_lists_its_labelled_images_in_its_folder(tmp_path: Path, digits: Digits) -> None:
    lines = trained(tmp_path, {"LABELS.per_class": 2, "LABELS.seed": 5, "SEED": 1})
    subset = few(digits, per_class=2, seed=5)
    assert lines == [f"{subset.describe(index)}\t{subset.labels[index]}" for index in range(20)]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_run_lists_files_that_data_path_reads_back(
    tmp_path: Path, uneven: Folder, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images under the same labels, wherever the list lies and from wherever it is read."""
    monkeypatch.chdir(tmp_path)
    path = Path("images") if relative else tmp_path / "images"
    keys = {"DATA.name": "folder", "DATA.path": path, "DATA.val_share": 0, "LABELS.per_class": 3, "LABELS.seed": 2}
    lines = trained(tmp_path / "runs" / "few", keys)
    assert len(lines) == 7
    assert_read_back(tmp_path / "runs" / "few" / "labelled.txt", uneven)
    listed = {"DATA.name": "folder", "DATA.path": tmp_path / "runs" / "few" / "labelled.txt", "DATA.val_share": 0}
    code, text = call(tmp_path / "again", SMALL | listed, FINETUNE)
    assert code == 0, text
    assert "7 labelled to train, 0 held out" in text
    assert not (tmp_path / "again" / "labelled.txt").exists()  # that run trains on all of its data set


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_run_on_a_list_lists_files_that_data_path_reads_back(
    tmp_path: Path, uneven: Folder, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"images/{path.parent.name}/{path.name}\t{path.parent.name}" for path in uneven.paths]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    path = Path("all.txt") if relative else tmp_path / "all.txt"
    keys = {"DATA.name": "folder", "DATA.path": path, "DATA.val_share": 0, "LABELS.per_class": 3, "LABELS.seed": 2}
    trained(tmp_path / "runs" / "few", keys)
    assert_read_back(tmp_path / "runs" / "few" / "labelled.txt", folder(tmp_path / "all.txt"))


def test_few_labels_know_where_their_images_are(tmp_path):
    for number, name in enumerate(("a", "b")):
        write_digits(tmp_path / "data" / name, 4, first=4 * number)
    source = Folder("train", DataSettings(path=str(tmp_path / "data"), channels=1), val_share=0)
    few = few_labels(source, LabelSettings(per_class=2))
    assert len(few) == 4
    assert few.missing() == ""
    (tmp_path / "data").rename(tmp_path / "away")
    assert few.missing() == f"DATA.path {tmp_path / 'data'}: No such file or directory"
