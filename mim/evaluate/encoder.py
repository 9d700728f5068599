"""Features of a frozen encoder: nearest neighbours, logistic regression, and a file of them.

Every sample is counted once, on one process or under torchrun. Shapes: N samples, D feature width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names
from mim.data.sources.subset import few_labels
from mim.evaluate.loading import (
    LoadedCheckpoint,
    check_finite,
    check_labelled,
    inference_mode,
    load,
    origin,
    ready_encoder,
)
from mim.evaluation.knn import features_of, knn_accuracy
from mim.evaluation.logistic import logistic_accuracy
from mim.evaluation.reading import Reader, left_out_metrics
from mim.io.files import write_atomically
from mim.metric_keys import KNN_TOP1, LOGISTIC_TOP1
from mim.structures import Pool


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """Pooled features (N, D) float32 of one split, on the CPU, with labels (N,), -1 where there are none, and names."""

    features_ND: Tensor
    labels_N: Tensor
    names: list[str]
    rows: list[int]  # the position of each sample in its source
    classes: tuple[str, ...]
    broken: dict[str, str]  # the reason for each file that is left out


def knn(
    run: Path, overrides: Overrides, pool: Pool, k: int | None, temperature: float, labels: LabelSettings
) -> dict[str, Any]:
    """Top-1 of the k nearest training images by cosine similarity on the held-out ones; see knn_accuracy.

    k: None means EVALUATE.knn of the run, or 20 where it has none. Raises ValueError where one is out of range.
    """
    if (k is not None and k < 1) or temperature <= 0:
        raise ValueError(f"--k is {k} and --temperature {temperature:g}: at least 1 neighbour, and above 0")
    with load(run, overrides) as loaded:
        k = k or getattr(loaded.cfg.EVALUATE, "knn", 0) or 20
        bank, queries = _both(loaded, pool, labels)
        top1 = knn_accuracy(
            *(bank.features_ND, bank.labels_N, queries.features_ND, queries.labels_N), k=k, temperature=temperature
        )
        return _metrics(loaded, bank, queries, {"pool": pool, "k": k, "temperature": temperature, KNN_TOP1: top1})


def logistic(run: Path, overrides: Overrides, pool: Pool, c: float, labels: LabelSettings) -> dict[str, Any]:
    """Top-1 of a logistic regression on standardised features; see logistic_accuracy.

    Raises ValueError where c is not positive.
    """
    if c <= 0:
        raise ValueError(f"--c is {c:g}: it must be above 0")
    with load(run, overrides) as loaded:
        train, test = _both(loaded, pool, labels)
        top1 = logistic_accuracy(train.features_ND, train.labels_N, test.features_ND, test.labels_N, c)
        return _metrics(loaded, train, test, {"pool": pool, "c": c, LOGISTIC_TOP1: top1})


def features(run: Path, overrides: Overrides, pool: Pool, output: Path) -> dict[str, Any]:
    """Writes the features of both splits to an .npz file, and returns how many there are. Broken images have no row.

    Arrays: classes, and train_features, train_labels, train_names, val_features, val_labels, val_names.
    """
    with load(run, overrides) as loaded:
        sources = loaded.sources()
        train, held_out = (split_features(loaded, source, pool) for source in sources)
        if loaded.world.main:
            arrays: dict[str, np.ndarray] = {"classes": np.array(train.classes, dtype=str)}
            for split, part in (("train", train), ("val", held_out)):
                arrays[f"{split}_features"] = part.features_ND.numpy()
                arrays[f"{split}_labels"] = part.labels_N.numpy()
                arrays[f"{split}_names"] = np.array(part.names, dtype=str)
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return _metrics(loaded, train, held_out, {"pool": pool, "file": str(output)})


def _both(loaded: LoadedCheckpoint, pool: Pool, labels: LabelSettings) -> tuple[SplitFeatures, SplitFeatures]:
    """The features of the labelled training images, and those of the held-out images."""
    train, held_out = loaded.sources()
    for source in (train, held_out):
        check_labelled(loaded, source)
    build.check_classes(train, held_out, "this evaluation")
    return split_features(loaded, few_labels(train, labels), pool), split_features(loaded, held_out, pool)


def split_features(loaded: LoadedCheckpoint, source: Source, pool: Pool) -> SplitFeatures:
    """The features of all images of a source that can be read, in their order."""
    encoder, preprocess = ready_encoder(loaded)
    world = loaded.world
    data = build.evaluation_data(loaded.cfg, source, masks=False)
    reader = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers)
    with inference_mode(loaded):
        parts = reader.read(data, range(len(data)), world.rank, world.size)
        features_ND, labels_N, rows_N = map(world.gather, features_of(encoder, pool, preprocess, parts, world.device))
    check_finite(loaded, "features", features_ND)
    broken = reader.settle(len(rows_N), world)
    order_N = rows_N.argsort()
    rows = rows_N[order_N].tolist()
    names = [source.describe(row) for row in rows]
    return SplitFeatures(features_ND[order_N].cpu(), labels_N[order_N].cpu(), names, rows, class_names(source), broken)


def _metrics(
    loaded: LoadedCheckpoint, train: SplitFeatures, held_out: SplitFeatures, extra: dict[str, Any]
) -> dict[str, Any]:
    counts = {"training images": len(train.labels_N), "held-out images": len(held_out.labels_N)}
    left_out = left_out_metrics(train.broken | held_out.broken)
    return {**origin(loaded), **counts, **left_out, "width": train.features_ND.shape[1], **extra}
