"""Metrics over ranks: uneven shards, also an empty one, give what one rank gives, to the last bit."""

import contextlib
import io
import json
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from collecting import CPU, Rows, answered, collect, plain, result_of, spec_of

from mim.evaluation.metrics import Result, collector_for

KINDS = ("class", "classes", "number", "mask")


class ThreadWorld:
    """A rank that is a thread: the methods of World that collectors use."""

    def __init__(self, rank: int, shared: list, barrier: threading.Barrier):
        self.rank, self.shared, self.barrier = rank, shared, barrier

    def _exchange(self, value):
        self.shared[self.rank] = value
        self.barrier.wait()
        values = list(self.shared)
        self.barrier.wait()
        return values

    def sum(self, tensor):
        return sum(self._exchange(tensor))

    def gather(self, rows):
        return torch.cat(self._exchange(rows))

    def from_main(self, make):
        return self._exchange(make() if self.rank == 0 else None)[0]


def on_ranks(kind: str, data: Rows, outputs: int, shards: list[list[int]], **options) -> list[Result]:
    """The result of each rank, where rank r has the rows of shards[r]."""
    shared, barrier = [None] * len(shards), threading.Barrier(len(shards), timeout=60)

    def of_rank(rank: int) -> Result:
        collector = collect(collector_for(spec_of(kind, outputs), CPU, **options), data, shards[rank])
        return collector.result(ThreadWorld(rank, shared, barrier), resamples=20)

    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(of_rank, range(len(shards))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [1, 7, 41])
def test_uneven_shards_give_what_one_rank_gives(kind, images):
    data = answered(kind, 3, images)
    rows = np.random.default_rng(0).permutation(images).tolist()
    alone = plain(result_of(kind, data, 3, resamples=20))
    for shards in ([rows[::2], rows[1::2]], [rows[:1], rows[1:4], rows[4:]], [[], rows]):
        for result in on_ranks(kind, data, 3, shards):
            assert plain(result) == alone


def test_the_bound_of_scores_is_that_of_all_ranks_together():
    data, rows = answered("class", 4, 100), list(range(100))
    for most, kept in ((400, True), (399, False), (50, False)):
        one, two = on_ranks("class", data, 4, [rows[:30], rows[30:]], most_values=most)
        assert plain(one) == plain(two)
        assert ("val/auroc" in one.metrics) is kept


def test_an_image_that_two_ranks_count_is_a_mistake_of_the_program():
    data = answered("class", 4, 10)
    with pytest.raises(AssertionError, match="counted once"):
        on_ranks("class", data, 4, [[0, 1, 2], [2, 3]])


SCRIPT = '''
"""Metrics of each kind on one process or several."""
import json

from collecting import answered, collect, plain, spec_of

from mim.engine.distributed.world import join_world
from mim.engine.settings import DistributedSettings
from mim.evaluation.metrics import collector_for

with join_world(DistributedSettings(device="cpu", backend="gloo")) as world:
    found = {}
    for kind in ("class", "classes", "number", "mask"):
        for images in (1, 13):
            data = answered(kind, 3, images)
            collector = collector_for(spec_of(kind, 3), world.device)
            collect(collector, data, list(range(world.rank, images, world.size)))
            found[f"{kind} {images}"] = plain(collector.result(world, resamples=20))
    if world.main:
        print("FOUND" + json.dumps([world.size, found]))
'''


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, warm):
    """Of 13 images and of 1, of which the second rank has none."""
    script = tmp_path / "collect.py"
    script.write_text(SCRIPT)
    alone = io.StringIO()
    with contextlib.redirect_stdout(alone):
        runpy.run_path(str(script))
    code, output = warm.run_program(script, 2, [], script.with_suffix(".log"))
    assert code == 0, output
    one, two = (
        json.loads(next(line for line in text.splitlines() if line.startswith("FOUND"))[5:])
        for text in (alone.getvalue(), output)
    )
    assert (one[0], two[0]) == (1, 2)
    assert one[1] == two[1]
    assert one[1].keys() == {f"{kind} {images}" for kind in KINDS for images in (1, 13)}
