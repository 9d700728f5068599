"""Pretrain: one reading of the held-out images and one of the bank serve an evaluation."""

import torch
from processes import RECIPE, TINY

from mim import build
from mim.build import load_config
from mim.engine.distributed.world import World
from mim.tasks import pretrain

ALONE = World(0, 1, torch.device("cpu"))


def task(**keys):
    words = TINY | {"DATA.workers": 0, "DATA.batch_size": 16, "EVALUATE.reconstructions": 3, "EVALUATE.samples": 30}
    words |= {"EVALUATE.knn_bank": 40, "DATA.mean": "[0.3]", "DATA.std": "[0.35]"}
    cfg = load_config(RECIPE, [str(word) for pair in (words | keys).items() for word in pair])
    return build.build_task(cfg, *build.build_data(cfg))


def count_reads(source, monkeypatch) -> list[int]:
    reads, read = [], source.read

    def counting(index):
        reads.append(index)
        return read(index)

    monkeypatch.setattr(source, "read", counting)
    return reads


def evaluated(pretraining, times: int) -> list:
    pretraining.model.eval()
    with torch.no_grad():
        return [pretraining.evaluate(pretraining.model, ALONE) for _ in range(times)]


def test_evaluation_reads_each_image_once(monkeypatch):
    pretraining = task()
    val_reads, bank = (count_reads(data.source, monkeypatch) for data in (pretraining.held_out, pretraining.bank))
    first, second = evaluated(pretraining, 2)
    assert len(val_reads) == 2 * 30
    assert len(set(val_reads)) == 30
    assert len(bank) == 2 * 40
    assert first.metrics == second.metrics
    assert set(first.metrics) == {"val/loss", "val/baseline", "knn/top1"}
    assert torch.equal(first.pictures["reconstructions"], second.pictures["reconstructions"])


def test_evaluation_of_many_images_gives_the_same_without_keeping_them(monkeypatch):
    (in_memory,) = evaluated(task(), 1)
    monkeypatch.setattr(pretrain, "KEPT_BYTES", 0)
    (read_twice,) = evaluated(task(), 1)
    assert in_memory.metrics == read_twice.metrics
    assert torch.equal(in_memory.pictures["reconstructions"], read_twice.pictures["reconstructions"])
