"""Answers and labels of any kind, and collectors of them, for tests of metrics."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from mim.engine.distributed.world import World
from mim.evaluation.metrics import Collector, Result, collector_for
from mim.structures import LabelKind, LabelSpec

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
Rows = tuple[Tensor, Tensor, Tensor]  # answers, labels and losses of each image


def spec_of(kind: LabelKind, outputs: int) -> LabelSpec:
    return LabelSpec(kind, tuple(f"n{number}" for number in range(outputs)))


def answered(kind: LabelKind, outputs: int, images: int, seed: int = 0) -> Rows:
    """Answers that lean towards the truth."""
    generator = torch.Generator().manual_seed(seed)
    losses_N = torch.rand(images, generator=generator)
    if kind in ("class", "mask"):
        size = (12, 16) if kind == "mask" else ()
        labels = torch.randint(outputs, (images, *size), generator=generator)
        scores = torch.randn(images, outputs, *size, generator=generator)
        truth = torch.nn.functional.one_hot(labels, outputs).movedim(-1, 1)
        return (scores + 1.5 * truth).double().softmax(dim=1), labels, losses_N
    noise_NK = torch.randn(images, outputs, generator=generator).double()
    if kind == "classes":
        labels = (torch.rand(images, outputs, generator=generator) > 0.6).float()
        return (2 * labels - 1 + noise_NK).sigmoid(), labels, losses_N
    labels = torch.randn(images, outputs, generator=generator)
    return labels + 0.5 * noise_NK, labels, losses_N


def collect(collector: Collector, data: Rows, rows: list[int], batch: int = 7) -> Collector:
    """Adds these rows in batches."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        answers, labels, losses_N = (each[part] for each in data)
        collector.add(answers, labels, part, losses_N)
    return collector


def result_of(kind: LabelKind, data: Rows, outputs: int, **options) -> Result:
    collector = collector_for(spec_of(kind, outputs), CPU)
    return collect(collector, data, list(range(len(data[1])))).result(ALONE, **options)


def plain(result: Result) -> dict:
    """Values that can be compared."""
    values = {name: value for name, value in asdict(result).items() if name not in ("confusion_KK", "calibration")}
    confusion = None if result.confusion_KK is None else result.confusion_KK.tolist()
    error = None if result.calibration is None else result.calibration.error
    return json.loads(json.dumps([values, confusion, error]))
