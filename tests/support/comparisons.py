"""A Comparison for tests: MAE, SimMIM and a cross over three seeds, as tools/compare.py would make it."""

import io
import math
import random

from PIL import Image

from mim.lab.comparison.analysis.metrics import ColumnValues
from mim.lab.comparison.analysis.separation import best_of
from mim.lab.comparison.result import Budget, Column, Comparison, Curve, Entry, PairedTest, Setting, Sheet
from mim.ops.intervals import estimate, paired

NAMES = ("MAE", "SimMIM", "MAE's encoder, SimMIM's head")
SEEDS = (0, 1, 2)
COLUMNS = (
    Column("knn/top1", "kNN", "%", "accuracy", "higher"),
    Column("finetune/top1", "fine-tuning", "%", "accuracy", "higher", "after the last epoch"),
    Column("val/loss", "held-out loss", "", "loss", "neither", "does not compare: targets differ"),
    Column("parameters", "parameters", "", "cost", "neither"),
    Column("peak_memory_bytes", "peak memory", "B", "cost", "lower"),
    Column("seconds", "time", "s", "cost", "lower"),
)
TYPICAL = {  # of the first, second and third entry: value, and spread over seeds
    "knn/top1": ((96.4, 94.1, 95.2), 0.15),
    "finetune/top1": ((97.2, 98.6, 97.9), 0.08),
    "val/loss": ((0.282, 0.202, 0.231), 0.003),
    "parameters": ((1_512_000.0, 1_204_000.0, 1_512_000.0), 0.0),
    "peak_memory_bytes": ((401e6, 512e6, 455e6), 4e6),
    "seconds": ((169.0, 157.0, 163.0), 2.0),
}
IMAGES = tuple(1437.0 * epoch for epoch in range(21))
SETTINGS = (
    ("MASKER.ratio", "method", ("0.75", "0.6", "0.6")),
    ("LOSS.name", "method", ("mse", "l1", "l1")),
    ("TRAIN.epochs", "fairness", ("20", "20", "30")),
    ("LOG.every_steps", "other", ("20", "50", "20")),
)


def picture() -> bytes:
    """A PNG of 640 x 200 pixels."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((640, 200)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def curve(name: str, seed: int, metric: str, start: float, end: float, pace: float) -> Curve:
    """From start to end over IMAGES; pace: FLOPs an image, and images in 10 s."""
    values = tuple(end + (start - end) * math.exp(-5 * images / IMAGES[-1]) for images in IMAGES)
    seconds = tuple((images / pace + seed) * 10 for images in IMAGES)
    at = {"images_seen": IMAGES, "flops": tuple(images * pace * 1e4 for images in IMAGES), "seconds": seconds}
    return Curve(name, seed, metric, at, values)  # type: ignore[arg-type]


def best_values(entries: list[Entry]) -> dict[str, str]:
    """The best entry of each column, as tools/compare.py marks it."""

    def values(key: str) -> dict[str, dict[tuple[int, int], float]]:
        return {
            entry.name: {(seed, seed): value for seed, value in zip(entry.seeds, entry.values[key], strict=True)}
            for entry in entries
        }

    columns = [ColumnValues(each, values(each.key), tested=each.section == "accuracy") for each in COLUMNS]
    return best_of(columns)


def comparison(names: tuple[str, ...] = NAMES, seeds: tuple[int, ...] = SEEDS) -> Comparison:
    """Every part of a comparison has something in it. The same for the same arguments."""
    draw = random.Random(0)
    entries, curves = [], []
    for number, name in enumerate(names):
        values = {
            key: tuple(typical[number % 3] + 0.05 * spread * number + draw.gauss(0, spread) for _ in seeds)
            for key, (typical, spread) in TYPICAL.items()
        }
        folders = tuple(f"runs/compare/pretraining/{number}-seed{seed}" for seed in seeds)
        metrics = {key: estimate(samples) for key, samples in values.items()}
        entries.append(Entry(name, f"random {number + 1} · vit · drop", seeds, folders, metrics, values))
        pace = 5000 + 700.0 * (number % 3)
        for index, seed in enumerate(seeds):
            curves.append(curve(name, seed, "knn/top1", 80.0, values["knn/top1"][index], pace))
            curves.append(curve(name, seed, "val/loss", 1.9, values["val/loss"][index], pace))
    pairs = [(one, other) for one in range(min(3, len(names))) for other in range(one + 1, min(3, len(names)))]
    tests = tuple(
        PairedTest(key, names[one], names[other], seeds, paired(entries[one].values[key], entries[other].values[key]))
        for key in ("knn/top1", "finetune/top1")
        for one, other in pairs
    )
    budgets = tuple(
        Budget(axis, limit, "knn/top1", {entry.name: entry.metrics["knn/top1"] for entry in entries})  # type: ignore[arg-type]
        for axis, limit in (("images_seen", 7185.0), ("images_seen", 28740.0), ("flops", 1.5e12), ("seconds", 45.0))
    )
    settings = tuple(
        Setting(key, kind, tuple(values[number % 3] for number in range(len(names))))  # type: ignore[arg-type]
        for key, kind, values in SETTINGS
    )
    return Comparison(
        title="MAE, SimMIM and a cross",
        created="2026-03-02T14:05:31+00:00",
        entries=tuple(entries),
        columns=COLUMNS,
        curves=tuple(curves),
        settings=settings,
        evidence=("Held-out loss separates no two entries.",),
        warnings=("TRAIN.epochs differs: 30 in one, 20 in the others.",),
        best=best_values(entries),
        left_out=(("runs/compare/pretraining/0-seed3", "not finished: no summary.json"),),
        tests=tests,
        budgets=budgets,
        sheets=(Sheet("The same images", "75% hidden.", "Digits, masked and predicted", picture()),),
        metric_names={"knn/top1": "kNN accuracy, %", "val/loss": "held-out loss"},
        version="0.1.0",
        command="python tools/compare.py runs/compare",
        notes=("Reconstructions are those of the first entries.",),
    )
