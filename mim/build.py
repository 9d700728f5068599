"""Building: from a config to its objects, and the checks that need two parts at once."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mim import config
from mim.config import Config, Overrides
from mim.config.inherit import FindKnown
from mim.config.load import named
from mim.config.recipes import find_file
from mim.cost.model_summary import ModelSummary, summarise_model
from mim.data.augment import BatchAugment, RandomCropFlipColour
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.readable import check_readable
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names, match_classes
from mim.data.sources.label_check import label_problem
from mim.data.sources.once import listing_once
from mim.data.sources.subset import Subset, few_labels
from mim.data.statistics import estimate_statistics
from mim.data.transforms import CentreCrop, DeviceCropFlip, RandomCropFlip
from mim.engine import checkpoint
from mim.engine.plan import EngineSettings
from mim.engine.schedule import ScheduledRun
from mim.evaluation.reading import Reader
from mim.init_weights import find_known
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.ops.seeding import derive_seed
from mim.readouts.classifier import Classifier, finetune_classifier, probe_classifier
from mim.structures import ImageSpec
from mim.tasks.classify import Classify
from mim.tasks.finetune import Finetune
from mim.tasks.linear_probe import LinearProbe
from mim.tasks.pretrain import Pretrain

LOG = logging.getLogger("mim")

Model = MaskedImageModel | Classifier


def load_config(path: str | Path, overrides: Overrides = (), find_known: FindKnown = find_known) -> Config:
    """The complete config of a file and overrides, frozen: `load_config("a.yaml", {"TRAIN.epochs": 2})`.

    Args:
        path: a YAML file, or the name of a shipped recipe, such as `mae/vit_base`.
        overrides: values by key, as a dict, as pairs, or as `KEY VALUE` words of a command line.
        find_known: finds what is known of the model of INIT.checkpoint, from which keys that are not set are taken.

    Raises ConfigError for an unknown or repeated key, a value of the wrong type or range, parts that do not fit each
    other, a RECIPE that does not exist, and values with which the weights of INIT.checkpoint compute something else.
    """
    path = find_file(path)
    cfg = config.load_config(path, overrides, find_known)
    try:
        check(cfg)
    except ValueError as error:
        raise named(
            error, path, overrides, lambda: check(config.parse_config(path.read_text(encoding="utf-8")))
        ) from error
    return cfg


def image_spec(cfg: Config) -> ImageSpec:
    """The images that a config's encoder is built for."""
    return ImageSpec(cfg.DATA.channels, *cfg.DATA.image_size)


def build_model(cfg: Config) -> MaskedImageModel:
    """Masker, encoder, head, target and loss of a pretraining config, with weights drawn from its SEED.

    Raises ValueError where two parts do not fit each other, naming the way out.
    """
    if cfg.TASK != "pretrain":
        raise ValueError(f"TASK is {cfg.TASK}: it has a classifier, see build_classifier")
    image = image_spec(cfg)
    with _seeded(cfg):
        masker = cfg.MASKER.build(image)
        encoder = cfg.ENCODER.build(image)
        target = cfg.TARGET.build(image, encoder.spec)
        head = cfg.HEAD.build(encoder.spec, target.spec)
        return MaskedImageModel(masker, encoder, head, target, cfg.LOSS.build())


def build_classifier(cfg: Config, classes: int) -> Classifier:
    """Encoder and classifier of a config of fine-tuning or of a linear probe, with weights drawn from its SEED.

    Raises ValueError where the two do not fit each other, naming the way out.
    """
    head = cfg.CLASSIFIER
    with _seeded(cfg):
        encoder = cfg.ENCODER.build(image_spec(cfg))
        if cfg.TASK == "linear_probe":
            return probe_classifier(encoder, classes, head)
        return finetune_classifier(encoder, classes, head, cfg.FREEZE)


def ready(
    module: nn.Module, state: Mapping[str, Tensor], source: Path, cfg: Config, device: torch.device
) -> Preprocess:
    """Loads all weights of a model, or of a part of it, and returns the preprocessing; both are then on the device.

    source: the file of the state dict, for messages. The module is put into eval mode.

    Raises ValueError where the state dict is of another model.
    """
    checkpoint.load_strict(module, state, source)
    module.to(device).eval()
    choose_attention(module, device)
    data = cfg.DATA.shared
    return Preprocess(data.mean, data.std).to(device)


def build_without_memory(cfg: Config, classes: int = 1) -> Model | None:
    """The model on the meta device: shapes and checks, no weights. None where a part of a plugin cannot do that.

    Raises ValueError as build_model does, and where a weight would have more numbers than can be counted.
    """
    try:
        with torch.device("meta"):
            return build_model(cfg) if cfg.TASK == "pretrain" else build_classifier(cfg, classes)
    except (RuntimeError, TypeError, OverflowError) as error:  # TypeError: numpy() of a meta tensor
        if "overflow" in str(error).lower() or isinstance(error, OverflowError):
            raise ValueError(
                f"a weight of this model would be too large: lower its widths, patches or depths "
                f"({str(error).splitlines()[0]})"
            ) from error
        if "meta" in str(error).lower():
            return None
        raise


def check(cfg: Config) -> None:
    """Checks that need two sections at once, or torch. Raises ValueError, naming the key and the way out."""
    optimizer = cfg.OPTIMIZER.build()
    cfg.SCHEDULE.build(ScheduledRun(optimizer.base_lr, 1.0, cfg.TRAIN.epochs, 1))
    build_without_memory(cfg)
    if cfg.TASK != "pretrain" and cfg.INIT.parts == "model":
        raise ValueError(
            f"INIT.parts is model, and TASK {cfg.TASK} has no head of a pretraining: leave it out, and the encoder "
            "alone is taken. To go on with a run of this task, extend it with --extend"
        )
    if cfg.TASK == "finetune":
        _batch_augment(cfg, classes=1)
        RandomCropFlipColour(cfg.AUGMENT, cfg.DATA.shared)
    if cfg.TASK == "linear_probe" and cfg.TRAIN.clip and len(cfg.CLASSIFIER.rates) > 1:
        raise ValueError(
            f"TRAIN.clip is {cfg.TRAIN.clip:g}: it would couple the linear layers of CLASSIFIER.rates; set TRAIN.clip 0"
        )


def build_data(cfg: Config) -> tuple[Source, Source]:
    """The training images and the held-out ones, which may be none; as the task needs them.

    Raises ValueError where the task needs classes and the images have no labels, or labels that are no classes, or
    held-out images have a class without training images.
    """
    train, held_out = build_sources(cfg)
    if cfg.TASK == "pretrain":
        return train, held_out
    for images, which in ((train, "training"), (held_out, "held-out")):
        if len(images) and images.labels is None:
            raise ValueError(
                f"TASK {cfg.TASK} needs labels, and the {which} images of DATA.name {cfg.DATA.name} have none: "
                "name a data set of class folders, or a list with a label after each path"
            )
    check_classes(train, held_out, f"TASK {cfg.TASK}")
    if held_out.labels is not None:
        held_out, _ = match_classes(held_out, class_names(train), "the training images")
    return train, held_out


def build_sources(cfg: Config) -> tuple[Source, Source]:
    """The training images and the held-out ones, with or without labels."""
    with listing_once():
        train, held_out = (cfg.DATA.build(split, cfg.DATA.shared) for split in ("train", "val"))
    return train, held_out


def check_classes(train: Source, held_out: Source, use: str) -> None:
    """Raises ValueError where the labels of a data set are no classes. use: what needs classes."""
    problem = label_problem(train, held_out)
    if problem:
        raise ValueError(f"{use} needs classes, and {problem}")


def with_statistics(cfg: Config, train: Source) -> Config:
    """The config with DATA.mean and DATA.std as numbers, estimated from the images where it says so."""
    if cfg.DATA.mean != "estimate":
        return cfg
    nodata = cfg.DATA.shared.nodata
    mean, std = estimate_statistics(train, cfg.SEED, None if nodata == "none" else nodata)
    return cfg.replace({"DATA.mean": mean, "DATA.std": std})


def build_task(cfg: Config, train: Source, held_out: Source, weights: bool = True) -> Pretrain | Classify:
    """The task of a config. weights: false puts the model on the meta device, if all parts of plugins can do that.

    Raises ValueError where no image can be read; with weights only.
    """
    if weights:
        check_readable(train, "training")
        check_readable(held_out, "held-out")
    return (_pretrain if cfg.TASK == "pretrain" else _classify)(cfg, train, held_out, weights)


def chosen_labels(task: Pretrain | Classify) -> str | None:
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
        distributed=cfg.DISTRIBUTED,
    )


def evaluation_data(cfg: Config, source: Source) -> ImageDataset:
    """Images under the evaluation transform."""
    return ImageDataset(source, evaluation_crop(cfg), cfg.SEED)


def evaluation_crop(cfg: Config) -> CentreCrop:
    """The evaluation transform."""
    return CentreCrop(cfg.AUGMENT, cfg.DATA.image_size, cfg.EVALUATE.crop_pct)


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
        preprocess=_preprocess(cfg),
        train_data=_train_data(cfg, train, compare=weights),
        bank=evaluation_data(cfg, train),
        held_out=evaluation_data(cfg, held_out),
        settings=settings,
        seed=cfg.SEED,
        model_summary=_model_summary(shape, model, image_spec(cfg)),
        reader=Reader(data.batch_size, data.workers),
    )


def _classify(cfg: Config, train: Source, held_out: Source, weights: bool) -> Classify:
    data, classes = cfg.DATA.shared, class_names(train)
    labelled = few_labels(train, cfg.LABELS)
    shape = build_without_memory(cfg, len(classes))
    model = build_classifier(cfg, len(classes)) if weights or shape is None else shape
    few = "" if labelled is train else f" of {len(train):,}"
    shared = {
        "model": model,
        "preprocess": _preprocess(cfg),
        "held_out": evaluation_data(cfg, held_out),
        "classes": classes,
        "settings": cfg.EVALUATE,
        "labels": f"{len(labelled):,}{few} labelled",
        "model_summary": _model_summary(shape, model, image_spec(cfg)),
        "reader": Reader(data.batch_size, data.workers),
    }
    crops = _train_data(cfg, labelled, compare=weights)
    if cfg.TASK == "linear_probe":
        return LinearProbe(train_data=crops, rates=cfg.CLASSIFIER.rates, **shared)
    mixing = _batch_augment(cfg, len(classes))
    return Finetune(train_data=crops, augment=mixing, smoothing=cfg.AUGMENT.smoothing, **shared)


def _preprocess(cfg: Config) -> Preprocess:
    return Preprocess(cfg.DATA.mean, cfg.DATA.std, cfg.AUGMENT, cfg.DATA.image_size)


def _train_data(cfg: Config, source: Source, compare: bool) -> ImageDataset:
    """Images under the training transform. compare: check on a few images that they have one size, if they must."""
    data, augment = cfg.DATA.shared, cfg.AUGMENT
    crop = (DeviceCropFlip if augment.on_device else RandomCropFlip)(augment, data.image_size)
    if cfg.TASK == "finetune" and not augment.on_device:
        crop = RandomCropFlipColour(augment, data)
    images = ImageDataset(source, crop, cfg.SEED, data.repeats)
    if compare:
        images.check_sizes()
    return images


def _model_summary(shape: Model | None, model: Model, image: ImageSpec) -> ModelSummary:
    """The summary of the model without weights, or of the other where a part of a plugin needs values."""
    if shape is not None:
        try:
            return summarise_model(shape, image)
        except (RuntimeError, TypeError) as error:  # as in build_without_memory
            if "meta" not in str(error).lower():
                raise
    return summarise_model(model, image)


def _batch_augment(cfg: Config, classes: int) -> BatchAugment:
    return BatchAugment(cfg.AUGMENT, classes, cfg.DATA.batch_size)


@contextmanager
def _seeded(cfg: Config) -> Iterator[None]:
    """Inside, weights are drawn from SEED."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cfg.SEED, "weights"))
        yield
