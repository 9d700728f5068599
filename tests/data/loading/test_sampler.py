"""StepSampler: one global order, whatever the ranks, the micro-batches and the step a run begins with."""

import pytest

from mim.data.loading.sampler import SampleKey, StepSampler

SAMPLES, BATCH = 53, 12
PER_EPOCH = SAMPLES // BATCH


def rows(micro: int, rank: int, world: int, start: int = 0, stop: int = 9, seed: int = 0) -> list[list[SampleKey]]:
    return list(StepSampler(SAMPLES, BATCH, micro, rank, world, seed, start, stop))


def global_batches(start: int = 0, stop: int = 9, seed: int = 0) -> list[list[SampleKey]]:
    """The global batches: one rank, one micro-batch."""
    return rows(BATCH, 0, 1, start, stop, seed)


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (1, 3), (1, 1), (2, 6), (2, 3), (3, 4), (3, 2), (4, 1), (12, 1)])
def test_sampler_ranks_and_micro_batches_together_make_the_global_batch(world: int, micro: int) -> None:
    ranks = [rows(micro, rank, world) for rank in range(world)]
    accumulation = BATCH // (micro * world)
    assert all(len(micro_batches) == 9 * accumulation for micro_batches in ranks)
    for step, batch in enumerate(global_batches()):
        joined: list[SampleKey] = []
        for turn in range(accumulation):
            for micro_batches in ranks:
                assert len(micro_batches[step * accumulation + turn]) == micro
                joined += micro_batches[step * accumulation + turn]
        assert joined == batch


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (2, 3), (3, 4)])
def test_sampler_length_counts_its_micro_batches(world: int, micro: int) -> None:
    sampler = StepSampler(SAMPLES, BATCH, micro, world - 1, world, 0, 2, 7)
    assert len(sampler) == len(list(sampler)) == 5 * BATCH // (micro * world)


def test_sampler_epoch_is_a_permutation_without_repeats() -> None:
    batches = global_batches(stop=3 * PER_EPOCH)
    for epoch in range(3):
        keys = [key for batch in batches[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for key in batch]
        assert {key[0] for key in keys} == {epoch}
        indices = [key[1] for key in keys]
        assert len(indices) == len(set(indices)) == PER_EPOCH * BATCH
        assert set(indices) <= set(range(SAMPLES))


def test_sampler_left_over_samples_differ_from_epoch_to_epoch() -> None:
    batches = global_batches(stop=20 * PER_EPOCH)
    indices = {index for batch in batches for _, index in batch}
    assert indices == set(range(SAMPLES))


def test_sampler_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = global_batches(stop=3 * PER_EPOCH)
    orders = [
        tuple(index for batch in batches[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for _, index in batch)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 3
    assert global_batches(seed=1) != global_batches(seed=0)


@pytest.mark.parametrize("start", [1, PER_EPOCH - 1, PER_EPOCH, PER_EPOCH + 2])
def test_sampler_that_starts_later_gives_the_tail(start: int) -> None:
    assert global_batches(start=start) == global_batches()[start:]
    assert rows(3, 1, 2, start=start) == rows(3, 1, 2)[start * 2 :]


def test_sampler_can_be_read_twice() -> None:
    sampler = StepSampler(SAMPLES, BATCH, 4, 1, 3, 0, 0, 9)
    assert list(sampler) == list(sampler)


def test_sampler_data_set_of_exactly_one_batch() -> None:
    batches = list(StepSampler(4, 4, 4, 0, 1, 0, 0, 3))
    assert [sorted(index for _, index in batch) for batch in batches] == [[0, 1, 2, 3]] * 3
