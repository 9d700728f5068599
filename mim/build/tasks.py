"""From a config to what the engine trains: its task and its settings."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim.build.data import evaluation_data, training_data, training_preprocess
from mim.build.models import (
    build_model,
    build_predictor,
    build_without_memory,
    image_spec,
    model_summary,
    probe_settings,
)
from mim.config import Config
from mim.criteria import Criterion, TrainingLabels
from mim.data.augment import BatchAugment
from mim.data.labels.splits import split_rows
from mim.data.loading.readable import check_readable
from mim.data.sources.base import Source
from mim.data.sources.label_check import label_problem
from mim.data.sources.subset import Subset, few_labels
from mim.engine.plan import EngineSettings
from mim.engine.settings import LogSettings
from mim.engine.trackers.base import Tracker
from mim.evaluation.reading import Reader
from mim.model import MaskedImageModel
from mim.readouts import Predictor
from mim.structures import LabelSpec
from mim.tasks.feature_dataset import FeatureStore
from mim.tasks.finetune import Finetune
from mim.tasks.pretrain import Pretrain
from mim.tasks.probe import Probe
from mim.tasks.supervised import Supervised

Task = Pretrain | Supervised
NOT_IN_FEATURES = frozenset(  # keys of DATA that change no feature, or that the names of the files tell
    f"DATA.{key}" for key in ("path", "val_path", "val_share", "labels", "batch_size", "repeats", "masks", "workers")
) | {"DATA.max_broken", "DATA.retry_s", "DATA.index"}

LOG = logging.getLogger("mim")


def build_task(cfg: Config, train: Source, held_out: Source, weights: bool = True) -> Task:
    """The task of a config. weights: false puts the model on the meta device, if all parts of plugins can do that.

    Raises ValueError where no image can be read; with weights only.
    """
    if weights:
        check_readable(train, "training")
        check_readable(held_out, "held-out")
    return (_pretrain if cfg.TASK == "pretrain" else _supervised)(cfg, train, held_out, weights)


def chosen_labels(task: Task) -> str | None:
    """The labelled images of a run that trains on some of them, as a list file; None where it trains on all."""
    source = task.train_data.source
    return source.listing() if isinstance(source, Subset) else None


def engine_settings(cfg: Config) -> EngineSettings:
    """All that the engine needs of a config."""
    data, evaluate = cfg.DATA.shared, cfg.EVALUATE
    return EngineSettings(
        seed=cfg.SEED,
        batch_size=data.batch_size,
        repeats=data.repeats,
        workers=data.workers,
        max_broken=data.max_broken,
        evaluate_every_epochs=evaluate.every_epochs,
        evaluate_at_start=evaluate.at_start,
        train=cfg.TRAIN,
        optimizer=cfg.OPTIMIZER.build(),
        schedule=cfg.SCHEDULE.build,
        checkpoint=cfg.CHECKPOINT,
        log=cfg.LOG,
        trackers=trackers(cfg.LOG),
        distributed=cfg.DISTRIBUTED,
    )


def trackers(settings: LogSettings) -> tuple[Tracker, ...]:
    """The trackers of LOG.trackers, and TensorBoard where LOG.tensorboard is true. None of them has begun."""
    keys: list[dict[str, Any]] = [{"name": each} if isinstance(each, str) else dict(each) for each in settings.trackers]
    if settings.tensorboard and all(each["name"] != "tensorboard" for each in keys):
        keys.insert(0, {"name": "tensorboard"})
    return tuple(Tracker.named(each.pop("name"))(**each) for each in keys)


def _pretrain(cfg: Config, train: Source, held_out: Source, weights: bool) -> Pretrain:
    data, settings = cfg.DATA.shared, cfg.EVALUATE
    problem = label_problem(train, held_out) if settings.knn else ""
    if problem:
        LOG.warning("no kNN accuracy: %s; or turn it off with EVALUATE.knn 0", problem)
        settings = replace(settings, knn=0)
    shape = build_without_memory(cfg)
    model = build_model(cfg) if weights or shape is None else shape
    assert isinstance(model, MaskedImageModel)
    return Pretrain(
        model=model,
        preprocess=training_preprocess(cfg),
        train_data=training_data(cfg, train, compare=weights),
        bank=evaluation_data(cfg, train),
        held_out=evaluation_data(cfg, held_out),
        settings=settings,
        seed=cfg.SEED,
        masks=data.masks,
        model_summary=model_summary(shape, model, image_spec(cfg), data.masks),
        reader=Reader(data.batch_size, data.workers),
    )


def _supervised(cfg: Config, train: Source, held_out: Source, weights: bool) -> Finetune | Probe:
    data = cfg.DATA.shared
    labels = train.label_spec
    assert labels is not None  # build_data has checked it
    _check_augmentation(cfg, labels)
    labelled = few_labels(train, cfg.LABELS)
    training, choosing = _split_for_choice(cfg, labelled)
    shape = build_without_memory(cfg, labels)
    model = build_predictor(cfg, labels, _training_labels(training)) if weights or shape is None else shape
    assert isinstance(model, Predictor)
    few = "" if labelled is train else f" of {len(train):,}"
    choice = f", {len(choosing):,} to choose the setting" if choosing is not None else ""
    shared: dict[str, Any] = {
        "model": model,
        "preprocess": training_preprocess(cfg),
        "train_data": training_data(cfg, training, compare=weights),
        "held_out": evaluation_data(cfg, held_out),
        "settings": cfg.EVALUATE,
        "labels": f"{len(training):,}{few} labelled to train{choice}",
        "model_summary": model_summary(shape, model, image_spec(cfg)),
        "reader": Reader(data.batch_size, data.workers),
    }
    if cfg.TASK == "probe":
        images = None if choosing is None else evaluation_data(cfg, choosing)
        return Probe(grid=probe_settings(cfg), choosing=images, store=_feature_store(cfg), **shared)
    return Finetune(augment=batch_augment(cfg, labels.outputs), **shared)


def _feature_store(cfg: Config) -> FeatureStore | None:
    """Where the features of a probe are stored; None where augmentation changes images, or the config says no."""
    if not cfg.PROBE.keep_features or cfg.AUGMENT.crop != "centre":
        return None
    settings = [
        (key, value)
        for key, value in cfg.flat().items()
        if key.startswith(("PLUGINS", "ENCODER.", "DATA.")) and key not in NOT_IN_FEATURES
    ]
    return FeatureStore(Path(cfg.PROBE.features) if cfg.PROBE.features else None, repr(settings))


def _training_labels(source: Source) -> TrainingLabels:
    """The labels of the training images, masks one after the other, which are read where they are needed."""
    assert source.label_spec is not None
    if source.label_spec.kind == "mask":
        return (source.mask(row) for row in range(len(source)))
    return source.labels


def _check_augmentation(cfg: Config, labels: LabelSpec) -> None:
    """Raises ValueError for augmentation that would part images from their labels."""
    if cfg.TASK != "finetune":
        return
    if cfg.AUGMENT.mixes and (labels.kind != "class" or not Criterion.named(cfg.CRITERION.name).takes_mixed):
        raise ValueError(
            f"AUGMENT.mixup {cfg.AUGMENT.mixup:g} and AUGMENT.cutmix {cfg.AUGMENT.cutmix:g} mix images of one class "
            f"each, under CRITERION.name cross_entropy; the labels are of kind {labels.kind} and CRITERION.name is "
            f"{cfg.CRITERION.name}: set both to 0"
        )
    if cfg.AUGMENT.randaugment and labels.kind == "mask":
        raise ValueError(
            f"AUGMENT.randaugment is {cfg.AUGMENT.randaugment!r}: it moves pixels, and masks would stay where they "
            "are; set AUGMENT.randaugment ''"
        )


def _split_for_choice(cfg: Config, labelled: Source) -> tuple[Source, Source | None]:
    """The images that are trained on, and those that choose among the settings of a probe; None for no choice."""
    if cfg.TASK != "probe" or not cfg.PROBE.choose_share or len(probe_settings(cfg)) == 1:
        return labelled, None
    rows, choosing = split_rows(labelled, cfg.PROBE.choose_share, cfg.LABELS.seed)
    return Subset(labelled, rows), Subset(labelled, choosing)


def batch_augment(cfg: Config, classes: int) -> BatchAugment:
    """The erasing and mixing of a fine-tuning."""
    smoothing = cfg.CRITERION.arguments.get("smoothing", 0.0)
    return BatchAugment(cfg.AUGMENT, classes, cfg.DATA.batch_size, smoothing)
