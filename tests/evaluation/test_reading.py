"""Reading for an evaluation: every chosen sample once, whatever the ranks, and no image under another's name."""

from pathlib import Path

import pytest
import torch
from small_data import logged, write_digits

from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, CentreCrop
from mim.evaluation.reading import EvaluationBatch, Reader, choose_samples


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    source = Digits("val", DataSettings(channels=1))
    return ImageDataset(source, CentreCrop(AugmentSettings(), (32, 32)), 0)


def files(path: Path) -> ImageDataset:
    source = Folder("train", DataSettings(path=str(path), channels=1), val_share=0)
    return ImageDataset(source, CentreCrop(AugmentSettings(), (32, 32)), 0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def by_row(parts: list[EvaluationBatch]) -> dict[int, tuple]:
    """What was read, by row: index, image and label. Asserts that no row comes twice."""
    rows = [row for part in parts for row in part.rows]
    assert len(set(rows)) == len(rows)
    return {
        row: (part.batch.indices[position], part.batch.images_BCHW[position], int(part.batch.labels_B[position]))
        for part in parts
        for position, row in enumerate(part.rows)
    }


# ---------------------------------------------------------------- ranks and rows


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "indices", [[], [7], list(range(13)), [90, 3, 3, 41, 8, 200, 0], list(range(24, 0, -1))], ids=len
)
def test_reader_of_all_ranks_together_reads_each_chosen_sample_once(digits, indices, size):
    reader, parts, counts = Reader(4, 0), [], []
    for rank in range(size):
        rank_parts = list(reader.read(digits, indices, rank, size))
        counts.append(sum(len(part.rows) for part in rank_parts))
        parts += rank_parts
    assert sum(counts) == len(indices)
    assert max(counts) - min(counts) <= 1
    rows = by_row(parts)
    assert sorted(rows) == list(range(len(indices)))
    for row, (index, image_CHW, label) in rows.items():
        assert index == indices[row]
        sample = digits[0, indices[row]]
        assert torch.equal(image_CHW, sample.image_CHW)
        assert label == sample.label
    assert all(part.readable_B.all() for part in parts)


def test_reader_batches_have_the_size_asked_for_and_the_last_what_is_left(digits):
    parts = list(Reader(4, 0).read(digits, range(30, 41), rank=0, size=1))
    assert [len(part.rows) for part in parts] == [4, 4, 3]
    assert [part.batch.indices for part in parts] == [(30, 31, 32, 33), (34, 35, 36, 37), (38, 39, 40)]
    second = list(Reader(2, 0).read(digits, range(30, 41), rank=1, size=3))
    assert [part.rows for part in second] == [[1, 4], [7, 10]]
    assert [part.batch.indices for part in second] == [(31, 34), (37, 40)]


def test_reader_reads_nothing_on_a_rank_without_a_share(digits):
    assert list(Reader(4, 0).read(digits, [5, 6], rank=2, size=3)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_reader_reads_the_same_with_loader_processes(digits, workers):
    indices = [90, 3, 41, 8, 200, 0, 17]
    alone, shared = (list(Reader(2, count).read(digits, indices, 1, 2)) for count in (0, workers))
    assert [part.rows for part in alone] == [part.rows for part in shared] == [[1, 3], [5]]
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.batch.images_BCHW, two.batch.images_BCHW)
        assert one.batch.indices == two.batch.indices


def test_reader_leaves_the_global_generator_untouched(digits):
    before = torch.get_rng_state()
    list(Reader(4, 0).read(digits, range(9)))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- broken files


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reader_says_which_images_stand_in_for_a_broken_one(tmp_path, size):
    paths = write_digits(tmp_path, 11)
    for number in (2, 5, 6, 10):
        truncate(paths[number])
    indices = [10, 9, 6, 5, 5, 4, 2, 0]
    reader = Reader(3, 0)
    with logged() as lines:
        parts = [part for rank in range(size) for part in reader.read(files(tmp_path), indices, rank, size)]
        list(reader.read(files(tmp_path), indices))
    readable = {row: bool(part.readable_B[number]) for part in parts for number, row in enumerate(part.rows)}
    assert readable == {row: index not in (2, 5, 6, 10) for row, index in enumerate(indices)}
    for row, (index, _, _) in by_row(parts).items():
        assert (index == indices[row]) == readable[row]
        assert index not in (2, 5, 6, 10)
    assert len(lines) == 4  # each file once, over ranks, repetitions and evaluations
    for number, line in zip((2, 5, 6, 10), sorted(lines), strict=True):
        assert f"cannot read {paths[number]} (" in line
        assert "another image replaces it in evaluations" in line


def test_reader_of_another_evaluation_names_the_files_again(tmp_path):
    truncate(write_digits(tmp_path, 3)[1])
    for _ in range(2):
        with logged() as lines:
            list(Reader(3, 0).read(files(tmp_path), range(3)))
        assert len(lines) == 1


# ---------------------------------------------------------------- the choose_samples


def test_choice_of_all_samples_is_all_in_order():
    assert choose_samples(5, 0, 3) == [0, 1, 2, 3, 4]
    assert choose_samples(0, 0, 3) == choose_samples(0, 4, 3) == []


@pytest.mark.parametrize("most", [1, 7, 13])
def test_choice_is_different_samples_drawn_by_the_seed(most):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = choose_samples(13, most, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert choose_samples(13, most, 4) == first
    assert len(set(first)) == len(first) == most
    assert set(first) <= set(range(13))
    assert len({tuple(choose_samples(13, most, seed)) for seed in range(20)}) > 5


def test_choice_of_more_than_there_are_is_each_once():
    assert sorted(choose_samples(6, 100, 0)) == list(range(6))
