"""Reading for an evaluation: every chosen sample once, whatever the ranks, and no image under another's name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import digit, logged, write_digits

from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.data.sources.folder import Folder
from mim.data.transforms import AugmentSettings, CentreCrop
from mim.errors import DataLost
from mim.evaluation.reading import EvaluationBatch, Reader, choose_samples, left_out_metrics, readable_images


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
        row: (part.batch.indices[position], part.batch.images_BCHW[position], int(part.batch.labels[position]))
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
        assert (label,) == sample.labels


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
def test_reader_leaves_broken_images_out_and_names_each_once(tmp_path, size):
    paths = write_digits(tmp_path, 11)
    for number in (2, 5, 6, 10):
        truncate(paths[number])
    indices = [10, 9, 6, 5, 5, 4, 2, 0]  # a batch of three has no readable image with one rank
    reader = Reader(3, 0)
    with logged() as lines:
        parts = [part for rank in range(size) for part in reader.read(files(tmp_path), indices, rank, size)]
        assert reader.settle(3).keys() == {str(paths[number]) for number in (2, 5, 6, 10)}
        list(reader.read(files(tmp_path), indices))
        reader.settle(3)
    assert {row: index for row, (index, _, _) in by_row(parts).items()} == {1: 9, 5: 4, 7: 0}
    assert all(part.rows for part in parts)
    assert lines.pop() == "evaluations leave out 4 broken images"
    for number, line in zip((2, 5, 6, 10), lines, strict=True):  # each file once, over ranks and repetitions
        assert f"cannot read {paths[number]} (" in line
        assert "it is left out" in line


def test_reader_leaves_out_what_is_not_finite(tmp_path):
    for number, pixel in enumerate((0.5, np.nan, 0.25, -np.inf)):
        np.save(tmp_path / f"{number}.npy", np.full((32, 32), pixel, np.float32))
    reader = Reader(2, 0)
    parts = list(reader.read(files(tmp_path), range(4)))
    assert [(part.rows, part.batch.indices) for part in parts] == [([0], (0,)), ([2], (2,))]
    missing, infinite = (
        "all of its pixels are missing (NaN, or DATA.nodata)",
        "1,024 of its 1,024 pixel values are infinite",
    )
    assert list(reader.settle(2).values()) == [missing, infinite]


def test_reader_of_another_evaluation_names_the_files_again(tmp_path):
    truncate(write_digits(tmp_path, 3)[1])
    for _ in range(2):
        reader = Reader(3, 0)
        with logged() as lines:
            list(reader.read(files(tmp_path), range(3)))
            reader.settle(2)
        assert len(lines) == 1


def test_reader_stops_where_no_image_is_left(tmp_path):
    truncate(write_digits(tmp_path, 3)[1])
    reader = Reader(3, 0)
    assert list(reader.read(files(tmp_path), [1])) == []
    with pytest.raises(DataLost, match=r"none of the images of an evaluation can be read, such as .*digit-001\.png"):
        reader.settle(0)
    assert Reader(3, 0).settle(0) == {}  # nothing was to be read


def test_left_out_metrics_count_all_and_name_the_first():
    assert left_out_metrics({}) == {}
    metrics = left_out_metrics({f"{number:03d}.npy": "cut" for number in range(150)})
    assert metrics["evaluation/left_out"] == 150
    assert metrics["evaluation/left_out_files"] == [f"{number:03d}.npy: cut" for number in range(100)]


def test_readable_images_are_as_many_as_asked_for_where_some_are_broken(tmp_path):
    paths = write_digits(tmp_path, 11)
    data = files(tmp_path)
    order = choose_samples(11, 11, seed=4)
    assert list(readable_images(data, 3, 4).batch.indices) == order[:3]
    for index in (order[0], order[2]):
        truncate(paths[index])
    with logged() as lines:
        part = readable_images(data, 3, 4)
    assert list(part.batch.indices) == [order[1], order[3], order[4]]
    assert torch.equal(part.batch.images_BCHW[1], data[0, order[3]].image_CHW)
    assert len(lines) == 3
    assert len(readable_images(data, 20, 4).batch.indices) == 9


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


# ---------------------------------------------------------------- images of several stored types


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten digits; the third is torn, the fifth an array of floats, the sixth one with an infinite number."""
    paths = write_digits(tmp_path, 10)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    for number, corner in ((4, 0.5), (5, np.inf)):
        array_HW = np.asarray(digit(number)).astype(np.float32) / 255
        array_HW[0, 0] = corner
        paths[number].unlink()
        np.save(paths[number].with_suffix(".npy"), array_HW)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_reader_of_mixed_images_gives_each_once_and_names_the_broken_ones(photos: Path, workers: int) -> None:
    reader, data = Reader(4, workers), files(photos)
    parts = list(reader.read(data, range(10), mixed=True))
    assert [row for part in parts for row in part.rows] == [0, 1, 3, 4, 6, 7, 8, 9]
    broken = reader.settle(8)
    assert [Path(name).stem for name in broken] == ["digit-002", "digit-005"]
    assert "infinite" in list(broken.values())[1]
    assert np.array_equal(parts[2].batch.images_BCHW[1, 0], np.asarray(digit(9)))
    scaled_BCHW = parts[1].batch.images_BCHW  # pictures beside an array
    assert scaled_BCHW.dtype == torch.float32
    assert np.array_equal(scaled_BCHW[1, 0], np.asarray(digit(6)).astype(np.float32) / 255)


def test_reader_leaves_out_a_file_of_another_type_than_most(photos: Path) -> None:
    (photos / "digit-005.npy").unlink()
    reader, data = Reader(4, 0), files(photos)
    parts = list(reader.read(data, range(9)))
    assert [row for part in parts for row in part.rows] == [0, 1, 3, 5, 6, 7, 8]
    assert {part.batch.images_BCHW.dtype for part in parts} == {torch.uint8}
    reasons = reader.settle(7)
    assert [Path(name).stem for name in reasons] == ["digit-002", "digit-004"]
    assert "torch.float32" in reasons[str(photos / "digit-004.npy")]


def test_reader_leaves_out_more_broken_files_in_a_row_than_training_tries(tmp_path: Path) -> None:
    for path in write_digits(tmp_path, 30)[:25]:
        truncate(path)
    reader = Reader(4, 0)
    assert [row for part in reader.read(files(tmp_path), range(30)) for row in part.rows] == [25, 26, 27, 28, 29]
    assert len(reader.settle(5)) == 25
