"""The task of a config, without weights, and without images where the data set is not here."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from mim import build
from mim.config import Config
from mim.data.decoding.broken import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split, Stored
from mim.engine.distributed.world import device_of
from mim.engine.plan import EngineSettings, Plan
from mim.engine.precision import resolve_precision
from mim.lab.dryrun.trainer import ImageNoise
from mim.structures import LabelSpec
from mim.tasks.pretrain import Pretrain
from mim.tasks.supervised import Supervised

Task = Pretrain | Supervised


class AbsentImages(Source):
    """Images of which only the number is known. Their labels, where there are any, repeat in order."""

    name = "absent"

    def __init__(self, split: Split, settings: DataSettings, count: int, spec: LabelSpec | None):
        super().__init__(split, settings)
        self.count = count
        self.spec = spec
        if spec is not None and spec.kind != "mask":
            labels_N = np.arange(count, dtype=np.int64) % spec.outputs
            self.labels = labels_N if spec.kind == "class" else np.eye(spec.outputs, dtype=np.float32)[labels_N]
            self.classes = spec.names if spec.kind == "class" else ()

    @property
    def label_spec(self) -> LabelSpec | None:
        return self.spec

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Stored:
        raise BrokenImage("these images are not here")


@dataclass(frozen=True, slots=True, kw_only=True)
class DryTask:
    """A task on the meta device, or with weights where a user's part needs values."""

    cfg: Config  # the config, with DATA.mean, DATA.std and TRAIN.precision resolved
    task: Task  # the task, whose data set may be AbsentImages
    images: int | None  # number of training images; None where unknown
    held_out: int | None  # number of held-out images; None where unknown
    classes: int | None  # number of classes; 0 in pretraining, None where unknown
    stored: torch.dtype | None  # the type in which images are stored; None where unknown
    missing: tuple[str, ...]  # what is unknown and why, a line each

    @property
    def noise(self) -> ImageNoise:
        """The random images that replace the real ones."""
        labels = None if isinstance(self.task, Pretrain) else self.task.label_spec
        return ImageNoise(image=build.image_spec(self.cfg), stored=self.stored or torch.uint8, labels=labels)

    def build_model(self) -> build.Model:
        """The model with its weights."""
        if isinstance(self.task, Pretrain):
            return build.build_model(self.cfg)
        return build.build_predictor(self.cfg, self.task.label_spec)

    def engine_settings(self, compiled: bool = True) -> EngineSettings:
        """The settings of the engine, without those that have no effect. compiled: False turns TRAIN.compile off."""
        settings = build.engine_settings(self.cfg)
        train = replace(
            settings.train,
            compile=settings.train.compile if compiled else False,
            activation_checkpointing=settings.train.activation_checkpointing and bool(self.task.blocks()),
        )
        return replace(settings, train=train)

    def one_step_task(self, plan: Plan) -> Task:
        """A task with its own copy of the model and of the normalisation, and as many images as one step takes."""
        task, data = copy.copy(self.task), self.task.train_data
        task.model, task.preprocess = copy.deepcopy(task.model), copy.deepcopy(task.preprocess)
        task.fixed = [task.preprocess]
        absent = AbsentImages("train", data.source.settings, plan.batch, self.noise.labels)
        task.train_data = ImageDataset(absent, data.transform, data.seed, data.repeats)
        return task

    def plan(self, devices: int) -> Plan:
        """Batches and steps on this number of devices; one step per epoch where the number of images is unknown.

        Raises ValueError where the batch cannot be divided evenly, or there are fewer images than one step takes.
        """
        settings = build.engine_settings(self.cfg)
        rows = settings.train.batch or settings.batch_size * devices
        return Plan.of(settings, rows if self.images is None else self.images, devices)


def dry_task(cfg: Config, images: int | None = None, classes: int | None = None) -> DryTask:
    """The task of a config, without weights. A number of images or classes that is None is read from the data set.

    Raises ValueError where a number is not positive.
    """
    for flag, number in (("--images", images), ("--classes", classes)):
        if number is not None and number < 1:
            raise ValueError(f"{flag} is {number}: it must be at least 1")
    device = device_of(cfg.DISTRIBUTED)
    cfg = _with_statistics(cfg).replace({"TRAIN.precision": resolve_precision(cfg.TRAIN.precision, device)})
    pretraining = cfg.TASK == "pretrain"
    unknown = ["steps, images seen and hours (--images N)"] if images is None else []
    unknown += ["the classifier (--classes N)"] if classes is None and not pretraining else []
    sources, missing = None, list[str]()
    if unknown:
        try:
            sources = build.build_data(cfg)
        except ValueError as error:
            missing = [f"{error}. Unknown without the images: {'; '.join(unknown)}"]
    if sources is not None:
        spec = None if pretraining else sources[0].label_spec
        actual_classes = 0 if spec is None else spec.outputs
        if images is None and classes in (None, actual_classes):
            task = _task(cfg, *sources)
            counts = {"images": len(task.train_data), "held_out": len(sources[1]), "classes": actual_classes}
            return DryTask(cfg=cfg, task=task, stored=task.train_data.stored_type(), missing=(), **counts)
        images, classes = images or len(sources[0]), classes or actual_classes
    return _without_images(cfg, images, 0 if pretraining else classes, tuple(missing))


def _without_images(cfg: Config, images: int | None, classes: int | None, missing: tuple[str, ...]) -> DryTask:
    """The task on AbsentImages; an unknown number of classes counts as two."""
    spec, rows = None, images or 1
    if cfg.TASK != "pretrain":
        outputs = classes or 2
        spec = replace(build.assumed_labels(cfg), names=tuple(map(str, range(outputs))))
        rows = images or max(outputs * max(1, cfg.LABELS.per_class), cfg.LABELS.count, 2)
    settings = cfg.DATA.shared
    held_out = AbsentImages("val", settings, 0, spec)
    task = _task(cfg, AbsentImages("train", settings, rows, spec), held_out)
    counts = {"images": None if images is None else len(task.train_data), "held_out": None, "classes": classes}
    return DryTask(cfg=cfg, task=task, stored=None, missing=missing, **counts)


def _task(cfg: Config, train: Source, held_out: Source) -> Task:
    try:
        task = build.build_task(cfg, train, held_out, weights=False)
    except (RuntimeError, TypeError) as error:  # a user's part that needs values
        if "meta" not in str(error).lower():
            raise
        return build.build_task(cfg, train, held_out)
    if isinstance(task, Pretrain):
        task.model.masker = cfg.MASKER.build(build.image_spec(cfg))  # on the CPU, so that masks can be drawn
    return task


def _with_statistics(cfg: Config) -> Config:
    """DATA.mean and DATA.std change neither shapes nor costs, so they are not estimated here."""
    if cfg.DATA.mean != "estimate":
        return cfg
    return cfg.replace({"DATA.mean": (0.0,) * cfg.DATA.channels, "DATA.std": (1.0,) * cfg.DATA.channels})
