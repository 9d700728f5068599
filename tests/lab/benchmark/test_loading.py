"""The loader compared with torchvision's published pipeline: what is counted, and that it leaves no trace."""

from pathlib import Path

import pytest
import torch
from small_data import write_digits

from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, RandomCropFlip
from mim.lab.benchmark.loading import (
    LoadingResult,
    measure_loading,
    our_batches,
    published_batches,
    published_images,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_digits(tmp_path / "a", 6, suffix=".jpg")
    write_digits(tmp_path / "b", 5, first=6, suffix=".jpg")
    return tmp_path


def dataset(path: Path, repeats: int = 1) -> ImageDataset:
    source = Folder("train", DataSettings(path=str(path), channels=1), val_share=0)
    return ImageDataset(source, RandomCropFlip(AugmentSettings(), (16, 16)), 0, repeats)


def test_measure_loading_gives_a_rate_of_both_for_each_round_and_leaves_no_trace(images: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rates = measure_loading(dataset(images), images, (16, 16), rounds=3, seconds=0.02)
    assert list(rates) == ["ours", "torchvision"]
    assert {len(each) for each in rates.values()} == {3}
    assert min(min(each) for each in rates.values()) > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_ratio_is_the_quotient_of_the_medians_with_those_of_the_rounds() -> None:
    rates = {"ours": (100.0, 300.0, 80.0), "torchvision": (50.0, 100.0, 100.0)}
    result = LoadingResult(
        theme="", machine=None, date=None, source="", crops="", images=1, files=None, images_per_s=rates
    )
    assert result.ratios == [2.0, 3.0, 0.8]
    assert result.ratio == 1.0


@pytest.mark.parametrize(("repeats", "rows"), [(1, 11), (3, 33), (100, 100)])
def test_measure_loading_counts_crops(images: Path, repeats: int, rows: int) -> None:
    """11 images are fewer than a batch of 64; more than 64 crops of one image are a batch of their own."""
    counts = our_batches(dataset(images, repeats))
    assert [next(counts) for _ in range(3)] == [rows] * 3


def test_published_pipeline_goes_on_over_epochs(images: Path) -> None:
    counts = published_batches(published_images(images, (16, 16)))
    assert [next(counts) for _ in range(3)] == [11, 11, 11]


def test_measure_loading_says_what_cannot_be_measured(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads class folders"):
        measure_loading(dataset(images), images / "a", (16, 16), rounds=1, seconds=0.01)
    with pytest.raises(ValueError, match="both must be positive"):
        measure_loading(dataset(images), images, (16, 16), rounds=0)
    (images / "a" / "digit-000.jpg").write_bytes(b"")
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="cannot read an image"):
        measure_loading(dataset(images), images, (16, 16), rounds=1, seconds=0.01)
    assert torch.get_num_threads() == threads
