"""Names of classes: compared by name, not by position, and mapped to the numbers of another list."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mim.data.settings import DataSettings
from mim.data.sources.base import Source
from mim.data.sources.classes import Relabelled, class_names, match_classes
from mim.data.sources.digits import Digits


class Labelled(Source):
    """One pixel an image."""

    name = "labelled"

    def __init__(self, labels: list[int], *classes: str):
        super().__init__("val", DataSettings())
        self.labels, self.classes = np.array(labels, dtype=np.int64), classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        return Image.new("L", (1, 1), index)


def match(source: Source, *classes: str) -> tuple[list[int], str]:
    result, note = match_classes(source, classes, "runs/best.pt")
    assert result.labels is not None
    assert result.classes == (classes if source.classes or result is not source else ())
    return result.labels.tolist(), note


def test_match_classes_of_the_same_names_in_the_same_order_changes_nothing() -> None:
    source = Labelled([1, 0, 1], "cat", "dog")
    assert match_classes(source, ["cat", "dog"], "") == (source, "")


def test_match_classes_follows_names_into_another_order() -> None:
    assert match(Labelled([0, 1, 2, 0], "dog", "owl", "cat"), "cat", "dog", "owl") == ([1, 2, 0, 1], "")


def test_match_classes_takes_both_forms_of_an_accent_for_one_name() -> None:
    assert match(Labelled([0, 1], "nai\u0308ve", "owl"), "owl", "na\u00efve") == ([1, 0], "")
    both = ("nai\u0308ve", "na\u00efve")
    assert match(Labelled([0, 1], *reversed(both)), *both) == ([1, 0], "")


def test_match_classes_takes_a_subset_and_says_how_many_there_are() -> None:
    note = "2 of 3 classes have images here"
    assert match(Labelled([0, 1, 1], "dog", "owl"), "cat", "dog", "owl") == ([1, 2, 2], note)
    assert match(Labelled([0, 2], "cat", "dog", "owl"), "cat", "dog", "owl") == ([0, 2], note)


def test_match_classes_needs_no_name_of_a_class_without_images() -> None:
    assert match(Labelled([0, 0], "cat", "yak"), "cat", "dog") == ([0, 0], "1 of 2 classes have images here")


def test_match_classes_refuses_other_names_with_both_lists() -> None:
    with pytest.raises(ValueError, match=r"than runs/best.pt: Cat, yak are not among its 2 classes, cat, dog\."):
        match_classes(Labelled([0, 1, 2], "Cat", "dog", "yak"), ("cat", "dog"), "runs/best.pt")


def test_match_classes_shortens_long_lists() -> None:
    names = [f"class {number}" for number in range(1000)]
    with pytest.raises(ValueError, match=r"its 1,000 classes, class 0, .*, class 7 and 992 more") as error:
        match_classes(Labelled(list(range(500)), *map(str, range(500))), names, "runs/best.pt")
    assert len(str(error.value)) < 600


def test_match_classes_compares_labels_without_names_by_number_and_says_so() -> None:
    labels, note = match(Labelled([2, 0]), "cat", "dog", "owl")
    assert labels == [2, 0]
    assert "the labels of DATA.name labelled have no names: number 0 is taken for cat" in note
    with pytest.raises(ValueError, match="7 is not among its 3 classes"):
        match_classes(Labelled([2, 7]), ("cat", "dog", "owl"), "")


def test_match_classes_of_a_checkpoint_without_names_are_numbers() -> None:
    eleven = tuple(map(str, range(11)))
    assert match(Labelled([10, 0, 10]), *eleven)[0] == [10, 0, 10]
    assert match(Labelled([0, 1, 2], "1", "10", "2"), *eleven)[0] == [1, 10, 2]  # folders in their order


def test_match_classes_refuses_huge_numbers_at_once() -> None:
    with pytest.raises(ValueError, match="1000000000000 is not among its 2 classes"):
        match_classes(Labelled([0, 10**12]), ("cat", "dog"), "")


def test_relabelled_reads_and_describes_the_images_of_its_source() -> None:
    source = Digits("val", DataSettings(channels=1))
    relabelled = Relabelled(source, 9 - source.labels, tuple("9876543210"))
    copy = pickle.loads(pickle.dumps(relabelled))  # as a dataloader worker of another system gets it
    for each in (relabelled, copy):
        assert len(each) == 360
        assert each.read(5).tobytes() == source.read(5).tobytes()
        assert each.read_reduced(5, lambda *_: None)[1] == (32, 32)
        assert each.describe(5) == source.describe(5)
        assert each.missing() == ""
        assert np.array_equal(each.labels, 9 - source.labels)


def test_class_names_of_no_images_are_none() -> None:
    assert class_names(Labelled([])) == ()
