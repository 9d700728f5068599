"""Evaluating a checkpoint: nearest neighbours, logistic regression, accuracy of a classifier, and features to a file.

Every sample is counted once, on one process or under torchrun. Shapes: N samples, D feature width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mim import build
from mim.config import Config, Overrides, parse_config
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.data.sources.subset import LabelSettings, few_labels
from mim.encoders import Encoder
from mim.engine import checkpoint
from mim.engine.distributed.world import World, join_world
from mim.engine.modes import inference
from mim.evaluation.accuracy import TOP
from mim.evaluation.knn import features_of, knn_accuracy
from mim.evaluation.logistic import logistic_accuracy
from mim.evaluation.reading import Reader
from mim.io.files import write_atomically
from mim.metric_keys import KNN_TOP1, LOGISTIC_TOP1, VAL_BY_CLASS, VAL_LOSS, VAL_TOP1, VAL_TOP5
from mim.structures import Pool
from mim.tasks.classify import count_correct


@dataclass(frozen=True, slots=True)
class SplitFeatures:
    """Pooled features (N, D) float32 of one split, on the CPU, with labels (N,), -1 where there are none, and names."""

    features_ND: Tensor
    labels_N: Tensor
    names: list[str]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint with its config, on this process's device."""

    path: Path
    cfg: Config
    content: dict
    world: World


def knn(
    run: Path, overrides: Overrides, pool: Pool, k: int | None, temperature: float, labels: LabelSettings
) -> dict[str, Any]:
    """Top-1 of the k nearest training images by cosine similarity on the held-out ones; see knn_accuracy.

    k: None means EVALUATE.knn of the run, or 20 where it has none. Raises ValueError where one is out of range.
    """
    if (k is not None and k < 1) or temperature <= 0:
        raise ValueError(f"--k is {k} and --temperature {temperature:g}: at least 1 neighbour, and above 0")
    with _loaded(run, overrides) as loaded:
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
    with _loaded(run, overrides) as loaded:
        train, test = _both(loaded, pool, labels)
        top1 = logistic_accuracy(train.features_ND, train.labels_N, test.features_ND, test.labels_N, c)
        return _metrics(loaded, train, test, {"pool": pool, "c": c, LOGISTIC_TOP1: top1})


def classify(run: Path, overrides: Overrides) -> dict[str, Any]:
    """Top-1 and top-5 of a fine-tuned or probed checkpoint on all held-out images; of a probe, its best linear layer.

    Raises ValueError where the checkpoint has no classifier, or one of other classes.
    """
    with _loaded(run, overrides) as loaded:
        cfg, world = loaded.cfg, loaded.world
        if cfg.TASK == "pretrain":
            raise ValueError(f"{loaded.path} is a pretraining run and has no classifier: use knn or logistic")
        train, held_out = build.build_data(cfg)
        _check_labelled(loaded, held_out)
        names = build.class_names(train)
        model = build.build_classifier(cfg, len(loaded.content["model"]["heads.0.bias"]))
        classes = model.heads[0].out_features
        if classes != len(names):
            raise ValueError(f"{loaded.path} has a classifier of {classes} classes, and the data has {len(names)}")
        preprocess = _ready(loaded, model, "")
        data, reader = build.evaluation_data(cfg, held_out), Reader(cfg.DATA.batch_size, cfg.DATA.workers)
        with _inference(loaded):
            parts = reader.read(data, range(len(data)), world.rank, world.size)
            layers = count_correct(model, preprocess, parts, len(names), world)
        best = max(layers, key=lambda counts: counts.top1)
        top5 = {VAL_TOP5: best.top5} if len(names) > TOP else {}
        return {
            **_source(loaded),
            "held-out images": best.samples,
            VAL_TOP1: best.top1,
            **top5,
            VAL_LOSS: best.loss,
            VAL_BY_CLASS: best.by_class(names),
        }


def features(run: Path, overrides: Overrides, pool: Pool, output: Path) -> dict[str, Any]:
    """Writes the features of both splits to an .npz file, and returns how many there are.

    Arrays: classes, and train_features, train_labels, train_names, val_features, val_labels, val_names.
    """
    with _loaded(run, overrides) as loaded:
        sources = build.build_data(loaded.cfg)
        train, held_out = (_features(loaded, source, pool) for source in sources)
        if loaded.world.main:
            arrays: dict[str, np.ndarray] = {"classes": np.array(train.classes, dtype=str)}
            for split, part in (("train", train), ("val", held_out)):
                arrays[f"{split}_features"] = part.features_ND.numpy()
                arrays[f"{split}_labels"] = part.labels_N.numpy()
                arrays[f"{split}_names"] = np.array(part.names, dtype=str)
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return _metrics(loaded, train, held_out, {"pool": pool, "file": str(output)})


@contextmanager
def _loaded(run: Path, overrides: Overrides) -> Iterator[LoadedCheckpoint]:
    path = checkpoint.find(run)
    content = checkpoint.load(path)
    cfg = parse_config(content["config"], overrides)
    if cfg.DATA.mean == "estimate":  # only in a converted file: the config of a run has the numbers
        cfg = build.with_statistics(cfg, build.build_data(cfg)[0])
    with join_world(cfg.DISTRIBUTED) as world:
        yield LoadedCheckpoint(path, cfg, content, world)


def _ready(loaded: LoadedCheckpoint, module: nn.Module, prefix: str) -> Preprocess:
    """See build.ready; the module is the part of the model whose names start with `prefix`."""
    state = checkpoint.evaluated(loaded.content, prefix)
    return build.ready(module, state, loaded.path, loaded.cfg, loaded.world.device)


def _inference(loaded: LoadedCheckpoint) -> AbstractContextManager[None]:
    return inference(loaded.cfg.TRAIN, loaded.world.device)


def _both(loaded: LoadedCheckpoint, pool: Pool, labels: LabelSettings) -> tuple[SplitFeatures, SplitFeatures]:
    """The features of the labelled training images, and those of the held-out images."""
    train, held_out = build.build_data(loaded.cfg)
    for source in (train, held_out):
        _check_labelled(loaded, source)
    return _features(loaded, few_labels(train, labels), pool), _features(loaded, held_out, pool)


def _check_labelled(loaded: LoadedCheckpoint, source: Source) -> None:
    which = "training" if source.split == "train" else "held-out"
    if not len(source):
        raise ValueError(f"DATA.name {loaded.cfg.DATA.name} has no {which} images: name others with DATA.path")
    if source.labels is None:
        raise ValueError(
            f"the {which} images of DATA.name {loaded.cfg.DATA.name} have no labels: name others with DATA.path, as "
            "class folders or as a list with a label after each path"
        )


def _features(loaded: LoadedCheckpoint, source: Source, pool: Pool) -> SplitFeatures:
    encoder: Encoder = loaded.cfg.ENCODER.build(build.image_spec(loaded.cfg))
    preprocess, world = _ready(loaded, encoder, "encoder."), loaded.world
    data = build.evaluation_data(loaded.cfg, source)
    reader = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers)
    with _inference(loaded):
        parts = reader.read(data, range(len(data)), world.rank, world.size)
        features_ND, labels_N, rows_N = map(world.gather, features_of(encoder, pool, preprocess, parts, world.device))
    order_N = rows_N.argsort()
    names = [source.describe(row) for row in rows_N[order_N].tolist()]
    return SplitFeatures(features_ND[order_N].cpu(), labels_N[order_N].cpu(), names, build.class_names(source))


def _source(loaded: LoadedCheckpoint) -> dict[str, Any]:
    averaged = " (moving average)" if loaded.content["ema"] else ""
    return {"checkpoint": f"{loaded.path}{averaged}", "step": loaded.content["step"]}


def _metrics(
    loaded: LoadedCheckpoint, train: SplitFeatures, held_out: SplitFeatures, extra: dict[str, Any]
) -> dict[str, Any]:
    counts = {"training images": len(train.labels_N), "held-out images": len(held_out.labels_N)}
    return {**_source(loaded), **counts, "width": train.features_ND.shape[1], **extra}
