"""From a config to its images: sources, labels, and data sets under their transforms."""

from mim.config import Config
from mim.data.augment import RandomCropFlipColour
from mim.data.augmentations.base import Augmentations
from mim.data.labels.join import join_labels
from mim.data.labels.settings import LabelSettings
from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.data.sources.classes import class_labels, class_names, match_classes
from mim.data.sources.label_check import label_problem
from mim.data.sources.once import listing_once
from mim.data.statistics import estimate_statistics
from mim.data.transforms import CentreCrop, DeviceCropFlip, RandomCropFlip

# keys of sources that demand labels, which come from elsewhere with LABELS.file or LABELS.masks
OWN_LABELS = {"DATA.labels": "none", "DATA.label_column": ""}


def build_data(cfg: Config) -> tuple[Source, Source]:
    """The training images and the held-out ones, which may be none; as the task needs them, with labels of any kind.

    Raises ValueError where the task needs labels and the images have none; and, of kind class, where labels do not look
    like classes and LABELS.kind does not say class, or held-out images have a class that training images do not know.
    """
    train, held_out = build_sources(cfg)
    if cfg.TASK == "pretrain":
        return train, held_out
    for images, which in ((train, "training"), (held_out, "held-out")):
        if len(images) and images.label_kind is None:
            raise ValueError(
                f"TASK {cfg.TASK} needs labels, and the {which} images of DATA.name {cfg.DATA.name} have none: "
                "name a data set of class folders, a list with a label after each path, or a table of labels "
                "(LABELS.file)"
            )
    if class_labels(train) is not None and cfg.LABELS.kind != "class":
        check_classes(train, held_out, f"TASK {cfg.TASK}")
    if class_labels(held_out) is not None:
        held_out, _ = match_classes(held_out, class_names(train), "the training images")
    return train, held_out


def build_sources(cfg: Config, labels: LabelSettings | None = None) -> tuple[Source, Source]:
    """The training images and the held-out ones, with or without labels.

    labels: in place of LABELS, which a pretraining config has not.
    """
    if labels is None and cfg.TASK != "pretrain":
        labels = cfg.LABELS
    if labels is not None and (labels.file or labels.masks):
        present = cfg.flat()
        cfg = cfg.replace({key: off for key, off in OWN_LABELS.items() if key in present})
    with listing_once():
        train, held_out = (cfg.DATA.build(split, cfg.DATA.shared) for split in ("train", "val"))
    return (train, held_out) if labels is None else join_labels(train, held_out, labels)


def check_classes(train: Source, held_out: Source, use: str) -> None:
    """Raises ValueError where the labels of a data set are no classes. use: what needs classes."""
    problem = label_problem(train, held_out)
    if problem:
        raise ValueError(f"{use} needs classes, and {problem}")


def with_statistics(cfg: Config, train: Source) -> Config:
    """The config with DATA.mean and DATA.std as numbers, estimated from the images where it says so."""
    if cfg.DATA.mean != "estimate":
        return cfg
    mean, std = estimate_statistics(train, cfg.SEED)
    return cfg.replace({"DATA.mean": mean, "DATA.std": std})


def evaluation_data(cfg: Config, source: Source, masks: bool | None = None) -> ImageDataset:
    """Images under the evaluation transform. masks: whether to read those; None: where the task is no pretraining."""
    return ImageDataset(
        source, evaluation_crop(cfg), cfg.SEED, masks=cfg.TASK != "pretrain" if masks is None else masks
    )


def evaluation_crop(cfg: Config) -> CentreCrop:
    """The evaluation transform."""
    return CentreCrop(cfg.AUGMENT, cfg.DATA.image_size, cfg.EVALUATE.crop_pct)


def training_crop(cfg: Config) -> CentreCrop | RandomCropFlip:
    """The training transform. Raises ValueError for keys of AUGMENT and AUGMENTATION that exclude each other."""
    data, augment, augmentations = cfg.DATA.shared, cfg.AUGMENT, _augmentations(cfg)
    if augment.crop == "centre":
        return evaluation_crop(cfg)
    if cfg.TASK == "finetune" and not augment.on_device:
        return RandomCropFlipColour(augment, data, augmentations)
    return (DeviceCropFlip if augment.on_device else RandomCropFlip)(augment, data.image_size, augmentations)


def training_data(cfg: Config, source: Source, compare: bool) -> ImageDataset:
    """Images under the training transform. compare: check on a few images that they have one size, if they must."""
    labels = {} if cfg.TASK == "pretrain" else {"masks": True, "balance": cfg.LABELS.balance}
    images = ImageDataset(source, training_crop(cfg), cfg.SEED, cfg.DATA.repeats, **labels)
    if compare:
        images.check_sizes()
    return images


def _augmentations(cfg: Config) -> Augmentations:
    """The parts of AUGMENTATION. Raises ValueError where there are some and AUGMENT.crop or on_device excludes them."""
    parts = [part for part in cfg.parts("AUGMENTATION") if part.name != "none"]
    for part in parts:
        if cfg.AUGMENT.crop == "centre":
            raise ValueError(
                f"{part.place}.name is {part.name}, and AUGMENT.crop is centre, which leaves an image the same in each "
                "epoch: set AUGMENT.crop simple, or leave AUGMENTATION out"
            )
        if cfg.AUGMENT.on_device:
            raise ValueError(
                f"{part.place}.name is {part.name}: it changes crops on the host, and AUGMENT.on_device makes them on "
                "the device; set AUGMENT.on_device false, or leave AUGMENTATION out"
            )
    return Augmentations(tuple(part.build(cfg.DATA.shared) for part in parts))


def training_preprocess(cfg: Config) -> Preprocess:
    """The normalisation of images, and their crops where they are cut on the device."""
    return Preprocess(cfg.DATA.mean, cfg.DATA.std, cfg.AUGMENT, cfg.DATA.image_size)
