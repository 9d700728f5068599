"""From a config to objects, and the checks that need two parts at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from mim.config.schema import image_spec, part, settings
from mim.cost.model_summary import ModelSummary, summarise_model
from mim.data.augment import BatchAugment, RandomCropFlipColour
from mim.data.loading.loader import ImageDataset
from mim.data.sources.base import Source
from mim.data.sources.subset import Subset, few_labels
from mim.data.statistics import estimate_statistics
from mim.data.transforms import CentreCrop, DeviceCropFlip, Normalize, RandomCropFlip
from mim.engine import checkpoint
from mim.engine.plan import EngineSettings
from mim.evaluation.reading import Reader
from mim.interop.files import is_pretrained_folder
from mim.interop.initialise import initialise_encoder
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.ops.seeding import derive_seed
from mim.readouts.classifier import Classifier, finetune_classifier, probe_classifier
from mim.structures import ImageSpec
from mim.tasks.classify import Classify
from mim.tasks.finetune import Finetune
from mim.tasks.linear_probe import LinearProbe
from mim.tasks.pretrain import Pretrain

Model = MaskedImageModel | Classifier


def build_model(cfg: CfgNode) -> MaskedImageModel:
    """Masker, encoder, head, target and loss of a pretraining config, with weights drawn from its SEED.

    Raises ValueError where two parts do not fit each other, naming the way out.
    """
    if cfg.TASK != "pretrain":
        raise ValueError(f"TASK is {cfg.TASK}: it has a classifier, see build_classifier")
    image = image_spec(cfg)
    with _seeded(cfg):
        masker = part(cfg, "MASKER", image)
        encoder = part(cfg, "ENCODER", image)
        target = part(cfg, "TARGET", image, encoder.spec)
        head = part(cfg, "HEAD", encoder.spec, target.spec)
        return MaskedImageModel(masker, encoder, head, target, part(cfg, "LOSS"))


def build_classifier(cfg: CfgNode, classes: int) -> Classifier:
    """Encoder and classifier of a config of fine-tuning or of a linear probe, with weights drawn from its SEED.

    Raises ValueError where the two do not fit each other, naming the way out.
    """
    head = settings(cfg, "CLASSIFIER")
    with _seeded(cfg):
        encoder = part(cfg, "ENCODER", image_spec(cfg))
        if cfg.TASK == "linear_probe":
            return probe_classifier(encoder, classes, head)
        return finetune_classifier(encoder, classes, head, settings(cfg, "FREEZE"))


def ready(
    module: nn.Module, state: Mapping[str, Tensor], source: Path, cfg: CfgNode, device: torch.device
) -> Normalize:
    """Loads all the weights of a model, or of a part of one, from the file `source`.

    It and the normalisation, which is given back, are then on the device and ready to evaluate. Raises ValueError where
    the file holds other weights.
    """
    checkpoint.load_strict(module, state, source)
    module.to(device).eval()
    choose_attention(module, device)
    data = settings(cfg, "DATA")
    return Normalize(data.mean, data.std).to(device)


def build_without_memory(cfg: CfgNode, classes: int = 1) -> Model | None:
    """The model on the meta device: shapes and checks, no weights. None where a part of a user's cannot do that.

    Raises ValueError as build_model does, and where a weight would have more numbers than can be counted.
    """
    try:
        with torch.device("meta"):
            return build_model(cfg) if cfg.TASK == "pretrain" else build_classifier(cfg, classes)
    except (RuntimeError, TypeError, OverflowError) as error:  # TypeError: numpy() of a meta tensor
        if "overflow" in str(error).lower() or isinstance(error, OverflowError):
            raise ValueError(
                f"a weight of this model would be too large to be: its widths, patches and depths are too much in "
                f"all ({str(error).splitlines()[0]})"
            ) from error
        if "meta" in str(error).lower():
            return None
        raise


def check(cfg: CfgNode) -> None:
    """Checks that need two sections at once. Raises ValueError, naming the key and the way out."""
    build_without_memory(cfg)
    if cfg.TASK == "finetune":
        _batch_augment(cfg, classes=1)
        RandomCropFlipColour(settings(cfg, "AUGMENT"), settings(cfg, "DATA"))
    if cfg.TASK == "linear_probe" and cfg.TRAIN.clip and len(cfg.CLASSIFIER.rates) > 1:
        raise ValueError(
            f"TRAIN.clip is {cfg.TRAIN.clip:g}: it would couple the linear layers of CLASSIFIER.rates; set TRAIN.clip 0"
        )


def build_data(cfg: CfgNode) -> tuple[Source, Source]:
    """The training images and the held-out ones, which may be none.

    Raises ValueError where the task needs labels and there are none.
    """
    shared = settings(cfg, "DATA")
    train, held_out = (part(cfg, "DATA", split, shared) for split in ("train", "val"))
    if cfg.TASK != "pretrain":
        for images, which in ((train, "training"), (held_out, "held-out")):
            if len(images) and images.labels is None:
                raise ValueError(
                    f"TASK {cfg.TASK} needs labels, and the {which} images of DATA.name {cfg.DATA.name} have none: "
                    "name a data set of class folders, or a list with a label behind each path"
                )
    return train, held_out


def with_statistics(cfg: CfgNode, train: Source) -> CfgNode:
    """The config with DATA.mean and DATA.std as numbers, estimated where it says so."""
    if cfg.DATA.mean != "estimate":
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.mean, cfg.DATA.std = map(list, estimate_statistics(train, cfg.SEED))
    cfg.freeze()
    return cfg


def with_precision(cfg: CfgNode, precision: str) -> CfgNode:
    """The config with another TRAIN.precision."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAIN.precision = precision
    cfg.freeze()
    return cfg


def initialise(cfg: CfgNode, task: Pretrain | Classify) -> list[str]:
    """Loads INIT.checkpoint, where there is one, and says in lines what became of each weight."""
    file = init_file(cfg)
    return initialise_encoder(task.model.encoder, file).lines() if file is not None else []


def init_file(cfg: CfgNode) -> Path | None:
    """The weights that INIT.checkpoint means; None where it is empty. Raises ValueError where there are none."""
    if not cfg.INIT.checkpoint:
        return None
    try:
        return weights_file(Path(cfg.INIT.checkpoint))
    except ValueError as error:
        raise ValueError(f"INIT.checkpoint {error}") from error


def weights_file(path: Path) -> Path:
    """What a path to weights means: of a run folder its best checkpoint, or its last; else the path itself.

    Raises ValueError where there is nothing.
    """
    return path if is_pretrained_folder(path) else checkpoint.find(path)


def build_task(cfg: CfgNode, train: Source, held_out: Source, weights: bool = True) -> Pretrain | Classify:
    """The task of a config, on the data that build_data gave.

    weights: without them the model is on the meta device, unless a part of a user's cannot do that.
    """
    return (_pretrain if cfg.TASK == "pretrain" else _classify)(cfg, train, held_out, weights)


def chosen_labels(task: Pretrain | Classify) -> str | None:
    """The labelled images of a run that trains on some of them, as a list file; None where it trains on all."""
    source = task.train_data.source
    return source.listing() if isinstance(source, Subset) else None


def engine_settings(cfg: CfgNode) -> EngineSettings:
    """What the engine is told."""
    data, evaluate = settings(cfg, "DATA"), settings(cfg, "EVALUATE")
    own = ("train", "schedule", "checkpoint", "log", "distributed")
    return EngineSettings(
        seed=cfg.SEED,
        batch_size=data.batch_size,
        repeats=data.repeats,
        workers=data.workers,
        max_broken=data.max_broken,
        evaluate_every_epochs=evaluate.every_epochs,
        evaluate_at_start=evaluate.at_start,
        optimizer=part(cfg, "OPTIMIZER"),
        **{name: settings(cfg, name.upper()) for name in own},
    )


def class_names(source: Source) -> tuple[str, ...]:
    """The name of each class of a labelled source; its number where the source has no names."""
    count = 1 + int(source.labels.max()) if source.labels is not None else 0
    return source.classes or tuple(map(str, range(count)))


def evaluation_data(cfg: CfgNode, source: Source) -> ImageDataset:
    """Images under the evaluation transform."""
    return ImageDataset(source, evaluation_crop(cfg), cfg.SEED)


def evaluation_crop(cfg: CfgNode) -> CentreCrop:
    """The evaluation transform."""
    return CentreCrop(settings(cfg, "AUGMENT"), tuple(cfg.DATA.image_size), cfg.EVALUATE.crop_pct)


def _pretrain(cfg: CfgNode, train: Source, held_out: Source, weights: bool) -> Pretrain:
    data = settings(cfg, "DATA")
    shape = build_without_memory(cfg)
    model = build_model(cfg) if weights or shape is None else shape
    assert isinstance(model, MaskedImageModel)
    return Pretrain(
        model,
        Normalize(data.mean, data.std),
        train_data=_train_data(cfg, train, compare=weights),
        bank=evaluation_data(cfg, train),
        held_out=evaluation_data(cfg, held_out),
        settings=settings(cfg, "EVALUATE"),
        seed=cfg.SEED,
        model_summary=_model_summary(shape, model, image_spec(cfg)),
        reader=Reader(data.batch_size, data.workers),
    )


def _classify(cfg: CfgNode, train: Source, held_out: Source, weights: bool) -> Classify:
    data, classes = settings(cfg, "DATA"), class_names(train)
    labelled = few_labels(train, settings(cfg, "LABELS"))
    shape = build_without_memory(cfg, len(classes))
    model = build_classifier(cfg, len(classes)) if weights or shape is None else shape
    few = "" if labelled is train else f" of {len(train):,}"
    shared = {
        "model": model,
        "normalize": Normalize(data.mean, data.std),
        "held_out": evaluation_data(cfg, held_out),
        "classes": classes,
        "settings": settings(cfg, "EVALUATE"),
        "labels": f"{len(labelled):,}{few} labelled",
        "model_summary": _model_summary(shape, model, image_spec(cfg)),
        "reader": Reader(data.batch_size, data.workers),
    }
    crops = _train_data(cfg, labelled, compare=weights)
    if cfg.TASK == "linear_probe":
        return LinearProbe(train_data=crops, rates=settings(cfg, "CLASSIFIER").rates, **shared)
    mixing = _batch_augment(cfg, len(classes))
    return Finetune(train_data=crops, augment=mixing, smoothing=settings(cfg, "AUGMENT").smoothing, **shared)


def _train_data(cfg: CfgNode, source: Source, compare: bool) -> ImageDataset:
    """Images under the training transform. compare: read a few, where they must be of one size."""
    data, augment = settings(cfg, "DATA"), settings(cfg, "AUGMENT")
    crop = (DeviceCropFlip if augment.on_device else RandomCropFlip)(augment, data.image_size)
    if cfg.TASK == "finetune" and not augment.on_device:
        crop = RandomCropFlipColour(augment, data)
    images = ImageDataset(source, crop, cfg.SEED, data.repeats)
    if compare:
        images.compare_sizes()
    return images


def _model_summary(shape: Model | None, model: Model, image: ImageSpec) -> ModelSummary:
    """Of the model without weights; of the one with them where a part of a user's has to look at values."""
    if shape is not None:
        try:
            return summarise_model(shape, image)
        except (RuntimeError, TypeError) as error:  # as in build_without_memory
            if "meta" not in str(error).lower():
                raise
    return summarise_model(model, image)


def _batch_augment(cfg: CfgNode, classes: int) -> BatchAugment:
    return BatchAugment(settings(cfg, "AUGMENT"), classes, cfg.DATA.batch_size)


@contextmanager
def _seeded(cfg: CfgNode) -> Iterator[None]:
    """Inside, weights are drawn from the config's SEED."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cfg.SEED, "weights"))
        yield
