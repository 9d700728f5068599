"""A config's task without its weights and, where they are not here, without its images."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from yacs.config import CfgNode

from mim import build
from mim.config import schema
from mim.data import DataSettings, Source
from mim.data.loading.loader import ImageDataset
from mim.data.sources.base import Split, Stored
from mim.engine.settings import EngineSettings, Plan
from mim.lab.dryrun.trainer import Noise
from mim.tasks.classify import Classify
from mim.tasks.pretrain import Pretrain

Task = Pretrain | Classify


class Absent(Source):
    """Images of which only the number is known; where there are classes, they take turns."""

    name = "absent"

    def __init__(self, split: Split, settings: DataSettings, count: int, classes: int):
        super().__init__(split, settings)
        self.count = count
        if classes:
            self.labels = np.arange(count, dtype=np.int64) % classes
            self.classes = tuple(map(str, range(classes)))

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Stored:
        raise RuntimeError("these images are not here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """A task on the meta device, or with its weights where a part of a user's cannot do without.

    images: that are trained on, None where unknown; held_out: None where unknown; classes: 0 in pretraining, None where
    unknown; stored: the type of the images, None where unknown; missing: what is not known and why, a line each.
    """

    cfg: CfgNode
    task: Task
    images: int | None
    held_out: int | None
    classes: int | None
    stored: torch.dtype | None
    missing: tuple[str, ...]

    @property
    def noise(self) -> Noise:
        """What random images in place of these are like."""
        classes = 0 if isinstance(self.task, Pretrain) else len(self.task.classes)
        return Noise(image=schema.image_spec(self.cfg), stored=self.stored or torch.uint8, classes=classes)

    def model(self) -> build.Model:
        """The model with its weights."""
        if isinstance(self.task, Pretrain):
            return build.build_model(self.cfg)
        return build.build_classifier(self.cfg, len(self.task.classes))

    def engine(self, compiled: bool = True) -> EngineSettings:
        """What the engine is told, without settings that have no effect; not to compile where so asked."""
        settings = build.engine_settings(self.cfg)
        train = replace(
            settings.train,
            compile=settings.train.compile and compiled,
            activation_checkpointing=settings.train.activation_checkpointing and bool(self.task.blocks()),
        )
        return replace(settings, train=train)

    def of_one_step(self, plan: Plan) -> Task:
        """The task with a model and a normalisation of its own, and just as many images as one step takes."""
        task, data = copy.copy(self.task), self.task.train_data
        task.model, task.normalize = copy.deepcopy(task.model), copy.deepcopy(task.normalize)
        task.fixed = [task.normalize]
        absent = Absent("train", data.source.settings, plan.batch, self.noise.classes)
        task.train_data = ImageDataset(absent, data.transform, data.seed, data.repeats)
        return task

    def plan(self, devices: int) -> Plan:
        """Batches and steps on so many devices, one step an epoch where the number of images is unknown.

        Raises ValueError where the batch does not come out whole, or there are fewer images than one step takes.
        """
        settings = build.engine_settings(self.cfg)
        rows = settings.train.batch or settings.batch_size * devices
        return Plan.of(settings, rows if self.images is None else self.images, devices)


def bare(cfg: CfgNode, images: int | None = None, classes: int | None = None) -> Bare:
    """The task of a config.

    images, classes: the number of training images, and of classes, instead of those of the data set, which is looked at
    for what is not given. Raises ValueError where they are not positive.
    """
    for flag, given in (("--images", images), ("--classes", classes)):
        if given is not None and given < 1:
            raise ValueError(f"{flag} is {given}: it must be at least 1")
    cfg, pretraining = _with_numbers(cfg), cfg.TASK == "pretrain"
    unknown = ["steps, images seen and hours (--images N)"] if images is None else []
    unknown += ["the classifier (--classes N)"] if classes is None and not pretraining else []
    data, missing = None, []
    if unknown:
        try:
            data = build.build_data(cfg)
        except ValueError as error:
            missing = [f"{error}. Unknown without the images: {'; '.join(unknown)}"]
    if data is not None:
        known = 0 if pretraining else len(build.class_names(data[0]))
        if images is None and classes in (None, known):
            task = _task(cfg, *data)
            return _bare(cfg, task, len(data[1]), known, _stored(task), missing)
        images, classes = images or len(data[0]), classes or known
    shown = 0 if pretraining else classes or 1
    rows = images or max(shown, 1) * max(1, 0 if pretraining else cfg.LABELS.per_class)
    settings = build.settings(cfg, "DATA")
    task = _task(cfg, Absent("train", settings, rows, shown), Absent("val", settings, 0, shown))
    found = _bare(cfg, task, None, 0 if pretraining else classes, None, missing)
    return found if images is not None else replace(found, images=None)


def _bare(
    cfg: CfgNode, task: Task, held_out: int | None, classes: int | None, stored: torch.dtype | None, missing: list[str]
) -> Bare:
    return Bare(
        cfg=cfg,
        task=task,
        images=len(task.train_data),
        held_out=held_out,
        classes=classes,
        stored=stored,
        missing=tuple(missing),
    )


def _task(cfg: CfgNode, train: Source, held_out: Source) -> Task:
    try:
        task = build.build_task(cfg, train, held_out, weights=False)
    except (RuntimeError, TypeError) as error:  # a part of a user's that looks at values as it runs
        if "meta" not in str(error).lower():
            raise
        return build.build_task(cfg, train, held_out)
    if isinstance(task, Pretrain):
        task.model.masker = schema.part(cfg, "MASKER", schema.image_spec(cfg))  # which can be sampled
    return task


def _with_numbers(cfg: CfgNode) -> CfgNode:
    """Mean and deviation cost nothing and change no shape, so they need not be estimated."""
    if cfg.DATA.mean != "estimate":
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.mean, cfg.DATA.std = [0.0] * cfg.DATA.channels, [1.0] * cfg.DATA.channels
    cfg.freeze()
    return cfg


def _stored(task: Task) -> torch.dtype | None:
    """The type of the first image that can be read."""
    try:
        return task.train_data[(0, 0)].image_CHW.dtype
    except RuntimeError:
        return None
