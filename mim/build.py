"""From a config to objects: which class each section stands for, and the checks that need two parts at once.

A config is taken as any mapping of sections with attribute access; mim.config makes one from a file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from mim.data import DataSettings, Source
from mim.data.loader import ImageDataset
from mim.data.statistics import estimate_statistics
from mim.data.transforms import AugmentSettings, CentreCrop, Normalize, RandomCropFlip
from mim.encoders import Encoder
from mim.engine.checkpoint import CheckpointSettings
from mim.engine.distributed import DistributedSettings
from mim.engine.optim import OptimizerSettings
from mim.engine.schedule import ScheduleSettings
from mim.engine.settings import EngineSettings, TrainSettings
from mim.engine.telemetry import LogSettings
from mim.evaluation.flops import training_flops
from mim.heads import Head
from mim.interop.initialise import initialise_encoder
from mim.losses import Loss
from mim.maskers import Masker
from mim.model import MaskedImageModel
from mim.ops.seeding import derive_seed
from mim.registry import Component, keys_of
from mim.structures import ImageSpec
from mim.targets import Target
from mim.tasks.pretrain import EvaluateSettings, Pretrain


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """INIT. checkpoint: a file whose encoder weights the run starts from; empty for none."""

    checkpoint: str = ""


FAMILIES: dict[str, type[Component]] = {
    family.section: family for family in (Source, Masker, Encoder, Head, Target, Loss)
}
SETTINGS: dict[str, type] = {
    "DATA": DataSettings,
    "AUGMENT": AugmentSettings,
    "INIT": InitSettings,
    "TRAIN": TrainSettings,
    "OPTIMIZER": OptimizerSettings,
    "SCHEDULE": ScheduleSettings,
    "EVALUATE": EvaluateSettings,
    "CHECKPOINT": CheckpointSettings,
    "LOG": LogSettings,
    "DISTRIBUTED": DistributedSettings,
}


def settings(cfg: CfgNode, section: str) -> Any:
    """The settings of a section as its dataclass. Raises ValueError where a value is out of range."""
    return SETTINGS[section](**_arguments(cfg, section, SETTINGS[section]))


def build_model(cfg: CfgNode) -> MaskedImageModel:
    """Masker, encoder, head, target and loss of a config, with weights drawn from its SEED.

    Raises ValueError where two parts do not fit each other, naming the way out.
    """
    image = _image(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(cfg.SEED, "weights"))
        masker = _part(cfg, "MASKER", image)
        encoder = _part(cfg, "ENCODER", image)
        target = _part(cfg, "TARGET", image, encoder.spec)
        head = _part(cfg, "HEAD", encoder.spec, target.spec)
        return MaskedImageModel(masker, encoder, head, target, _part(cfg, "LOSS"))


def build_without_memory(cfg: CfgNode) -> MaskedImageModel | None:
    """The model on the meta device: shapes and checks, no weights. None where a part of a user's cannot do that."""
    try:
        with torch.device("meta"):
            return build_model(cfg)
    except (RuntimeError, TypeError) as error:  # TypeError: numpy() of a meta tensor
        if "meta" in str(error).lower():
            return None
        raise


def build_data(cfg: CfgNode) -> tuple[Source, Source]:
    """The training images and the held-out ones, which may be none."""
    shared = settings(cfg, "DATA")
    train, held_out = (_part(cfg, "DATA", split, shared) for split in ("train", "val"))
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


def initialise(cfg: CfgNode, model: MaskedImageModel) -> list[str]:
    """Loads INIT.checkpoint, where there is one, and says in lines what became of each weight."""
    return initialise_encoder(model.encoder, Path(cfg.INIT.checkpoint)).lines() if cfg.INIT.checkpoint else []


def build_task(cfg: CfgNode, train: Source, held_out: Source) -> Pretrain:
    """The task of a config, on the data that build_data gave."""
    data, augment = settings(cfg, "DATA"), settings(cfg, "AUGMENT")
    plain = CentreCrop(augment, data.image_size)
    shape = build_without_memory(cfg)
    return Pretrain(
        build_model(cfg),
        Normalize(data.mean, data.std),
        train_data=ImageDataset(train, RandomCropFlip(augment, data.image_size), cfg.SEED),
        bank=ImageDataset(train, plain, cfg.SEED),
        held_out=ImageDataset(held_out, plain, cfg.SEED),
        settings=settings(cfg, "EVALUATE"),
        seed=cfg.SEED,
        flops=training_flops(shape, _image(cfg)) if shape is not None else None,
        batch_size=data.batch_size,
        workers=data.workers,
    )


def engine_settings(cfg: CfgNode) -> EngineSettings:
    """What the engine is told."""
    data, evaluate = settings(cfg, "DATA"), settings(cfg, "EVALUATE")
    own = ("train", "optimizer", "schedule", "checkpoint", "log", "distributed")
    return EngineSettings(
        seed=cfg.SEED,
        batch_size=data.batch_size,
        workers=data.workers,
        max_broken=data.max_broken,
        evaluate_every_epochs=evaluate.every_epochs,
        evaluate_at_start=evaluate.at_start,
        **{name: settings(cfg, name.upper()) for name in own},
    )


def _image(cfg: CfgNode) -> ImageSpec:
    return ImageSpec(cfg.DATA.channels, *cfg.DATA.image_size)


def _part(cfg: CfgNode, section: str, *context: Any) -> Any:
    part = FAMILIES[section].named(cfg[section].name)
    return part(*context, **_arguments(cfg, section, part))


def _arguments(cfg: CfgNode, section: str, cls: type) -> dict[str, Any]:
    """The keys of a section that a class takes, lists as tuples."""
    values = {key: cfg[section][key] for key in keys_of(cls)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
