"""Probe: one step trains readouts on the features of a frozen encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim import metric_keys as keys
from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.engine.distributed.world import World
from mim.engine.protocol import Report, StepContext
from mim.readouts import Predictor
from mim.structures import Features
from mim.tasks.feature_dataset import FOLDER, FeatureDataset, FeatureStore, fingerprint_of, store_features
from mim.tasks.supervised import Prepare, Supervised


@dataclass(frozen=True, slots=True)
class ProbeSetting:
    """One of the settings that a probe trains side by side."""

    readout: int  # position in READOUT
    rate: float  # factor on the learning rate
    weight_decay: float | None  # None: that of OPTIMIZER
    title: str  # the keys in which settings differ, as in `rate 3`; empty for the only setting


@dataclass(eq=False, kw_only=True)
class Probe(Supervised):
    """Readouts side by side, each with its own factor on the learning rate and its own weight decay. See Supervised.

    One of several is chosen: by its score on images that were held back from the training ones or, without these, on
    the held-out images, so that this score is a little too high. summary.json has all.
    """

    name = "probe"

    grid: tuple[ProbeSetting, ...]  # the setting of each readout
    choosing: ImageDataset | None = None  # images that choose among settings
    store: FeatureStore | None = None  # None: features are computed in each step

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features_of: dict[ImageDataset, FeatureDataset] = {}

    @property
    def prepares(self) -> bool:
        return self.store is not None

    def before_first_step(self, model: Predictor, world: World, folder: Path) -> None:
        """Computes the features of all images, where augmentation leaves them the same in each epoch."""
        assert self.store is not None
        folder = folder / FOLDER if self.store.folder is None else self.store.folder
        precision = torch.is_autocast_enabled(world.device.type), torch.get_autocast_dtype(world.device.type)
        more = self.store.settings, model.stages, all(readout.reads for readout in model.readouts), *precision

        def features(images_BCHW: Tensor) -> Features:
            return model.needed(model.features(self.preprocess(images_BCHW.to(world.device))))

        for images in filter(None, (self.train_data, self.choosing, self.held_out)):
            if len(images):
                fingerprint = world.from_main(partial(fingerprint_of, model.encoder, images, more))
                self._features_of[images] = store_features(images, features, self.reader, folder, fingerprint, world)
        self.train_data = self._features_of[self.train_data]

    def input_of(self, data: ImageDataset) -> tuple[ImageDataset, Prepare]:
        features = self._features_of.get(data)
        return super().input_of(data) if features is None else (features, features.unpack)

    def lr_scales(self, layer_decay: float) -> dict[str, float]:
        return {name: setting.rate for setting, names in self._parameters() for name in names}

    def weight_decays(self) -> dict[str, float]:
        return {
            name: setting.weight_decay
            for setting, names in self._parameters()
            for name in names
            if setting.weight_decay is not None
        }

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """The criterion, in fp32. Its value is the readouts' mean; each readout gets the gradient of its own loss."""
        if isinstance(self.train_data, FeatureDataset):
            scores = model(self.train_data.unpack(batch.images_BCHW))
        else:
            scores = model(self.preprocess(batch.images_BCHW, batch.crops_B5))
        losses = [self.model.criterion(each, batch.labels) for each in scores]
        total = torch.stack(losses).sum()
        return total - (total - total / len(losses)).detach()

    def evaluate(self, model: Predictor, world: World) -> Report:
        """The metrics of the best setting on the held-out images; the scores of all settings are details."""
        if len(self.grid) == 1:
            return super().evaluate(model, world)
        key, best, metrics, details = self.score, -1, dict[str, float](), dict[str, Any]()
        if self.choosing is not None:
            key = keys.choice(self.score)
            scores = self.answers_to(model, self.choosing, world).scores(self.score)
            best, details = _best(scores), self._by_setting(key, scores)
            metrics = {key: scores[best]} if scores[best] > -math.inf else {}
        report = Report({}, {})
        if len(self.held_out):
            answers = self.answers_to(model, self.held_out, world)
            scores = answers.scores(self.score)
            best, details = best if best >= 0 else _best(scores), details | self._by_setting(self.score, scores)
            report = self.report(model, answers, best, self.grid[best].title)
        if best < 0:
            return report
        metrics = {**report.metrics, **metrics, keys.CHOICE_SETTING: best}
        details = {**report.details, **details, keys.CHOICE_TITLE: self.grid[best].title}
        return Report(metrics, report.pictures, details, score=key if key in metrics else "")

    def _by_setting(self, key: str, scores: Sequence[float]) -> dict[str, float]:
        named = zip(self.grid, scores, strict=True)
        return {keys.of_setting(key, each.title): score for each, score in named if score > -math.inf}

    def _parameters(self) -> list[tuple[ProbeSetting, list[str]]]:
        """Each setting with the names of its parameters."""
        return [
            (setting, [f"readouts.{number}.{name}" for name, _ in readout.named_parameters()])
            for number, (setting, readout) in enumerate(zip(self.grid, self.model.readouts, strict=True))
        ]


def _best(scores: Sequence[float]) -> int:
    """The position of the best score, the first of equal ones."""
    return max(range(len(scores)), key=scores.__getitem__)
