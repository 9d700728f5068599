"""What a source says of its labels, what views pass on, and what asks for classes does with labels of other kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from label_files import NAMES, classes_of, join, sources, write_mask, write_photographs
from small_data import RECIPE, logged, write_recipe

from mim.build import build_task, load_config
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split
from mim.data.sources.classes import class_labels, class_names
from mim.data.sources.digits import Digits
from mim.data.sources.label_check import label_problem
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack
from mim.data.sources.retry import RetryingSource
from mim.data.sources.subset import Subset
from mim.data.sources.view import View
from mim.data.transforms import AugmentSettings, CentreCrop
from mim.structures import LabelSpec


@pytest.fixture(autouse=True)
def warnings_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A run in the same process may have turned on what is only told."""
    caplog.set_level("WARNING", logger="mim")


class Measured(Digits):
    """An own source whose labels are two numbers for each image."""

    def __init__(self, split: Split, settings: DataSettings, **keys: object):
        super().__init__(split, settings, **keys)
        self.classes: tuple[str, ...] = ()
        self.labels = np.stack([self.labels / 4, -self.labels], axis=1).astype(np.float32)
        self.groups = np.arange(len(self)) // 10

    @property
    def label_spec(self) -> LabelSpec:
        return LabelSpec("number", ("height", "depth"))


def measured(split: Split = "train") -> Measured:
    return Measured(split, DataSettings(channels=1, image_size=(32, 32)))


def test_label_spec_of_a_source_is_its_classes() -> None:
    digits = Digits("train", DataSettings(channels=1))
    assert digits.label_spec == LabelSpec("class", tuple("0123456789"))
    digits.classes = ()
    assert digits.label_spec == LabelSpec("class", tuple("0123456789"))
    digits.labels = None
    assert digits.label_spec is None
    assert (class_names(digits), class_labels(digits)) == ((), None)


def test_views_pass_on_labels_of_every_kind(tmp_path: Path) -> None:
    part = Subset(Subset(measured(), [5, 900, 17]), [2, 0])
    assert part.label_spec == LabelSpec("number", ("height", "depth"))
    assert part.labels.tolist() == measured().labels[[17, 5]].tolist()
    assert part.groups.tolist() == [1, 0]
    assert (class_names(part), class_labels(part)) == (("height", "depth"), None)
    for number, path in enumerate(write_photographs(tmp_path / "images")):
        write_mask(tmp_path / "masks" / path.name, classes_of(number))
    train, _ = join(tmp_path / "images", 0, 3, masks=tmp_path / "masks", names=NAMES)
    view = View(Subset(train, [3, 1]))
    assert view.label_spec == LabelSpec("mask", NAMES)
    assert np.array_equal(view.mask(0), classes_of(3))
    assert np.array_equal(RetryingSource(view).mask(1), classes_of(1))


def test_batches_hold_labels_of_every_kind() -> None:
    data = ImageDataset(measured(), CentreCrop(AugmentSettings(), (32, 32)), 0)
    for workers in (0, 1):
        (batch,) = batches(data, [[(0, 3), (0, 8)]], workers)
        assert torch.equal(batch.labels, torch.from_numpy(measured().labels[[3, 8]]))
        assert batch.labels.dtype == torch.float32


def test_label_problem_of_other_kinds_says_what_they_are() -> None:
    assert label_problem(measured(), measured("val")) == "the labels of DATA.name digits are numbers"


def test_pretraining_on_other_labels_has_no_knn_and_says_so(tmp_path: Path) -> None:
    cfg = load_config(write_recipe(tmp_path, RECIPE), ["DATA.mean", "[0.5]", "DATA.std", "[0.5]"])
    with logged() as lines:
        task = build_task(cfg, measured(), measured("val"))
    assert task.settings.knn == 0
    assert lines == ["no kNN accuracy: the labels of DATA.name digits are numbers; or turn it off with EVALUATE.knn 0"]
    assert not task._labelled


def test_packing_keeps_no_labels_of_other_kinds(tmp_path: Path) -> None:
    pack(
        {"train": Subset(measured(), [0, 1]), "val": Subset(measured("val"), [])}, tmp_path / "out", PackSettings(), int
    )
    packed: Source = Packed("train", DataSettings(path=str(tmp_path / "out"), channels=1), val_share=0)
    assert packed.label_spec is None
    assert len(packed) == 2


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_held_out_share_is_that_of_a_hash(tmp_path: Path, share: float) -> None:
    write_photographs(tmp_path)
    assert [source.held_out_share for source in sources(tmp_path, share, 3)] == [share, share]
    assert measured().held_out_share is None


def test_label_kind_of_huge_numbers_makes_no_names() -> None:
    """As of identities: a list of all names would take all memory."""
    digits = Digits("train", DataSettings(channels=1))
    digits.classes, digits.labels = (), digits.labels * 10**9
    assert (digits.label_kind, Subset(digits, [0, 1]).label_kind) == ("class", "class")
    assert ImageDataset(digits, CentreCrop(AugmentSettings(), (32, 32)), 0)[0, 2].labels == (int(digits.labels[2]),)
    with pytest.raises(ValueError, match=r"the labels of DATA\.name digits are numbers up to 9,000,000,000"):
        _ = digits.label_spec
