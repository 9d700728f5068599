"""Evaluating a checkpoint: nearest neighbours, logistic regression, accuracy of a classifier, and features to a file.

Every sample is counted once, on one process or under torchrun. Shapes: N samples, D feature width.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from yacs.config import CfgNode

from mim import build, config, schema
from mim.data import Source
from mim.data.labels import LabelSettings, few_labels
from mim.data.transforms import Normalize
from mim.encoders import Encoder
from mim.engine import checkpoint
from mim.engine.distributed import World, join_world
from mim.engine.modes import inference
from mim.evaluation.accuracy import TOP
from mim.evaluation.knn import features_of, knn_accuracy
from mim.evaluation.logistic import logistic_accuracy
from mim.evaluation.reading import Reader
from mim.ops.files import write_whole
from mim.structures import Pool
from mim.tasks.classify import count


@dataclass(frozen=True, slots=True)
class Features:
    """Pooled features (N, D) float32 of one split, on the CPU, with labels (N,), -1 where there are none, and names."""

    features_ND: Tensor
    labels_N: Tensor
    names: list[str]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint with its config, on this process's device."""

    path: Path
    cfg: CfgNode
    content: dict
    world: World


def knn(
    run: Path, overrides: Sequence[str], pool: Pool, k: int, temperature: float, labels: LabelSettings
) -> dict[str, Any]:
    """Top-1 of the k nearest training images by cosine similarity on the held-out ones; see knn_accuracy.

    Raises ValueError where k or the temperature is out of range.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"--k is {k} and --temperature {temperature:g}: at least 1 neighbour, and above 0")
    with _opened(run, overrides) as opened:
        bank, queries = _both(opened, pool, labels)
        found = knn_accuracy(
            *(bank.features_ND, bank.labels_N, queries.features_ND, queries.labels_N), k=k, temperature=temperature
        )
        return _figures(opened, bank, queries, {"pool": pool, "k": k, "temperature": temperature, "knn/top1": found})


def logistic(run: Path, overrides: Sequence[str], pool: Pool, c: float, labels: LabelSettings) -> dict[str, Any]:
    """Top-1 of a logistic regression on standardised features; see logistic_accuracy.

    Raises ValueError where c is not positive.
    """
    if c <= 0:
        raise ValueError(f"--c is {c:g}: it must be above 0")
    with _opened(run, overrides) as opened:
        train, test = _both(opened, pool, labels)
        found = logistic_accuracy(train.features_ND, train.labels_N, test.features_ND, test.labels_N, c)
        return _figures(opened, train, test, {"pool": pool, "c": c, "logistic/top1": found})


def classify(run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Top-1 and top-5 of a fine-tuned or probed checkpoint on all held-out images.

    Raises ValueError where the checkpoint has no classifier, or one of other classes.
    """
    with _opened(run, overrides) as opened:
        cfg, world = opened.cfg, opened.world
        if cfg.TASK == "pretrain":
            raise ValueError(f"{opened.path} is a pretraining run and has no classifier: use knn or logistic")
        train, held_out = build.build_data(cfg)
        _check_labelled(opened, held_out)
        names = build.class_names(train)
        model = build.build_classifier(cfg, len(opened.content["model"]["heads.0.bias"]))
        if model.heads[0].out_features != len(names):
            raise ValueError(
                f"{opened.path} tells {model.heads[0].out_features} classes apart, and the data has {len(names)}"
            )
        normalize = _ready(opened, model, "")
        data, reader = build.evaluation_data(cfg, held_out), Reader(cfg.DATA.batch_size, cfg.DATA.workers)
        with _inference(opened):
            found = count(model, normalize, data, list(range(len(data))), len(names), reader, world)
        best = max(found, key=lambda counts: counts.top1)
        top5 = {"val/top5": best.top5} if len(names) > TOP else {}
        return {
            **_source(opened),
            "held-out images": best.samples,
            "val/top1": best.top1,
            **top5,
            "val/loss": best.loss,
            "val/by_class": best.by_class(names),
        }


def features(run: Path, overrides: Sequence[str], pool: Pool, output: Path) -> dict[str, Any]:
    """Writes an .npz of both splits: {train,val}_{features,labels,names} and classes; says what is in it."""
    with _opened(run, overrides) as opened:
        sources = build.build_data(opened.cfg)
        train, held_out = (_features(opened, source, pool) for source in sources)
        if opened.world.main:
            arrays: dict[str, np.ndarray] = {"classes": np.array(train.classes, dtype=str)}
            for split, part in (("train", train), ("val", held_out)):
                arrays[f"{split}_features"] = part.features_ND.numpy()
                arrays[f"{split}_labels"] = part.labels_N.numpy()
                arrays[f"{split}_names"] = np.array(part.names, dtype=str)
            output.parent.mkdir(parents=True, exist_ok=True)
            write_whole(output, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return _figures(opened, train, held_out, {"pool": pool, "file": str(output)})


@contextmanager
def _opened(run: Path, overrides: Sequence[str]) -> Iterator[Opened]:
    path = checkpoint.find(run)
    content = checkpoint.load(path)
    cfg = config.parse_config(content["config"], overrides)
    if cfg.DATA.mean == "estimate":  # of a converted file, which does not tell; a run's are numbers by now
        cfg = build.with_statistics(cfg, build.build_data(cfg)[0])
    with join_world(schema.settings(cfg, "DISTRIBUTED")) as world:
        yield Opened(path, cfg, content, world)


def _ready(opened: Opened, module: nn.Module, prefix: str) -> Normalize:
    """See build.ready; the module is the part of the model whose names start with `prefix`."""
    state = checkpoint.evaluated(opened.content, prefix)
    return build.ready(module, state, opened.path, opened.cfg, opened.world.device)


def _inference(opened: Opened) -> AbstractContextManager[None]:
    return inference(schema.settings(opened.cfg, "TRAIN"), opened.world.device)


def _both(opened: Opened, pool: Pool, labels: LabelSettings) -> tuple[Features, Features]:
    """Features of the labelled training images and of the held-out ones."""
    train, held_out = build.build_data(opened.cfg)
    for source in (train, held_out):
        _check_labelled(opened, source)
    return _features(opened, few_labels(train, labels), pool), _features(opened, held_out, pool)


def _check_labelled(opened: Opened, source: Source) -> None:
    which = "training" if source.split == "train" else "held-out"
    if not len(source):
        raise ValueError(f"DATA.name {opened.cfg.DATA.name} has no {which} images: name others with DATA.path")
    if source.labels is None:
        raise ValueError(
            f"the {which} images of DATA.name {opened.cfg.DATA.name} have no labels: name others with DATA.path, as "
            "class folders or as a list with a label behind each path"
        )


def _features(opened: Opened, source: Source, pool: Pool) -> Features:
    encoder: Encoder = schema.part(opened.cfg, "ENCODER", schema.image_spec(opened.cfg))
    normalize, world = _ready(opened, encoder, "encoder."), opened.world
    data = build.evaluation_data(opened.cfg, source)
    reader = Reader(opened.cfg.DATA.batch_size, opened.cfg.DATA.workers)
    with _inference(opened):
        shown = reader.read(data, range(len(data)), world.rank, world.size)
        features_ND, labels_N, rows_N = map(world.gather, features_of(encoder, pool, normalize, shown, world.device))
    order_N = rows_N.argsort()
    names = [source.describe(row) for row in rows_N[order_N].tolist()]
    return Features(features_ND[order_N].cpu(), labels_N[order_N].cpu(), names, build.class_names(source))


def _source(opened: Opened) -> dict[str, Any]:
    averaged = " (moving average)" if opened.content["ema"] else ""
    return {"checkpoint": f"{opened.path}{averaged}", "step": opened.content["step"]}


def _figures(opened: Opened, train: Features, held_out: Features, own: dict[str, Any]) -> dict[str, Any]:
    counts = {"training images": len(train.labels_N), "held-out images": len(held_out.labels_N)}
    return {**_source(opened), **counts, "width": train.features_ND.shape[1], **own}
