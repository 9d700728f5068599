"""Answers of a classifier: accuracy on labelled images, and predictions for images without labels.

Every sample is counted once, on one process or under torchrun. Shapes: B batch, C channels, H W pixels, K classes.
"""

import logging
import math
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mim import build
from mim.config import Overrides
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names, match_classes, numbers
from mim.data.sources.files import Files
from mim.evaluate.loading import (
    LoadedCheckpoint,
    check_finite,
    check_labelled,
    inference_mode,
    load,
    no_labels,
    origin,
    ready,
)
from mim.evaluation.predictions import WRITERS, ClassPrediction, PredictionCounts
from mim.evaluation.reading import Reader, left_out_metrics
from mim.io.formatting import list_names
from mim.io.weights import CLASSES, LABEL_KIND, stored_classes
from mim.metric_keys import CHOICE_SETTING, VAL_BEST_RATE, VAL_LOSS, VAL_TOP1
from mim.readouts import Predictor
from mim.structures import LabelSpec
from mim.tasks.supervised import Answers, collect

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """The classifier of a checkpoint, on this process's device and in eval mode."""

    model: Predictor
    preprocess: Preprocess
    classes: tuple[str, ...]  # by name; empty where the checkpoint has no names
    outputs: int  # number of classes
    settings: tuple[str, ...]  # title of the setting of each readout
    chosen: int | None  # the only one, the one that was asked for, or the one that the run chose, if known

    def describe(self, chosen: int) -> dict[str, str]:
        """Which readout of a probe answers; nothing where there is one."""
        if len(self.settings) == 1:
            return {}
        return {"setting": f"{self.settings[chosen]}, one of {len(self.settings)}"}


def classify(run: Path, overrides: Overrides, setting: str | None = None) -> dict[str, Any]:
    """Top-1 and top-5 of a fine-tuned or probed checkpoint on all held-out images. Classes are compared by their names.

    setting: the title of one setting of a probe, such as `rate 3`, see LoadedClassifier.

    Raises ValueError where the checkpoint has no classifier, or an image has a class that it does not know.
    """
    with load(run, overrides) as loaded:
        cfg, world = loaded.cfg, loaded.world
        classifier = load_classifier(loaded, setting)
        matched, note = matched_source(loaded, classifier)
        data, reader = build.evaluation_data(cfg, matched), Reader(cfg.DATA.batch_size, cfg.DATA.workers)
        with inference_mode(loaded):
            parts = reader.read(data, range(len(data)), world.rank, world.size)
            collectors, images = collect(classifier.model, classifier.preprocess, parts, world)
        answers = Answers(collectors, world, matched.groups, reader.settle(images, world))
        chosen = classifier.chosen
        if chosen is None:
            scores = answers.scores(VAL_TOP1)
            chosen = scores.index(max(scores))
        result = answers.result(chosen, cfg.EVALUATE.resamples, cfg.SEED)
        check_finite(loaded, "scores", torch.tensor(result.metrics.get(VAL_LOSS, math.nan)))
        return {
            **origin(loaded),
            **classifier.describe(chosen),
            "held-out images": result.samples,
            **left_out_metrics(answers.broken),
            "classes": note or f"all {classifier.outputs:,} of the classifier",
            **result.metrics,
            **result.details(),
        }


def predict(
    run: Path, images: Sequence[Path], output: Path, overrides: Overrides = (), setting: str | None = None
) -> dict[str, Any]:
    """Writes the class of each image, and the probability of each class, and returns what was counted.

    Args:
        run: a run folder or checkpoint of fine-tuning or a linear probe.
        images: files, folders and lists, see Files. They need no labels.
        output: the file to write, with an ending of WRITERS.
        overrides: config keys.
        setting: the title of one setting of a probe, such as `rate 3`, see LoadedClassifier.

    Raises ValueError where the checkpoint has no classifier, or `images` names none, and DataLost where none can be
    read.
    """
    with load(run, overrides) as loaded:
        classifier = load_classifier(loaded, setting)
        if classifier.chosen is None:
            raise ValueError(
                f"{loaded.path} has {len(classifier.settings)} settings and no score that says which is best: name one "
                f"with --setting: {'; '.join(classifier.settings)}"
            )
        source = Files(images, loaded.cfg.DATA.shared)
        names = classifier.classes or numbers(classifier.outputs)
        reader, counts = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers), PredictionCounts(names)
        with inference_mode(loaded), closing(_answers(loaded, classifier, source, reader)) as answers:
            if loaded.world.main:
                output.parent.mkdir(parents=True, exist_ok=True)
                WRITERS[output.suffix.lower()](counts.of(answers), names, output)
            else:
                deque(counts.of(answers), maxlen=0)
        return {
            **origin(loaded),
            **classifier.describe(classifier.chosen),
            "images": counts.images,
            **left_out_metrics(reader.left_out(loaded.world)),
            "file": str(output),
            "predicted": counts.by_class(),
        }


def load_classifier(loaded: LoadedCheckpoint, setting: str | None) -> LoadedClassifier:
    """The classifier of a checkpoint. Raises ValueError where it has none, or no such setting."""
    cfg, content = loaded.cfg, loaded.content
    if cfg.TASK == "pretrain":
        raise ValueError(f"{loaded.path} is a pretraining run and has no classifier: use knn or logistic")
    if not any(name.startswith("readouts.") for name in content["model"]):
        raise ValueError(f"{loaded.path} holds an encoder without a classifier: use knn or logistic")
    names = content.get(CLASSES)
    outputs = len(content["model"].get("readouts.0.linear.bias", names or ()))
    classes = stored_classes(names, outputs)
    if not classes:
        LOG.warning(
            "%s holds no names of its classes, as runs of mim 0.1.0: number 0 stands for the first class of the data "
            "that it was trained on, in sorted order, and so on",
            loaded.path,
        )
    labels = LabelSpec(content.get(LABEL_KIND, "class"), classes or numbers(outputs))
    model = build.build_predictor(cfg, labels)
    grid = build.probe_settings(cfg) if cfg.TASK == "probe" else ()
    settings = tuple(each.title for each in grid) or ("",)
    if setting is not None and setting not in settings:
        known = "; ".join(filter(None, settings)) or "one alone"
        raise ValueError(f"--setting is {setting!r}, and the settings of {loaded.path} are: {known}")
    results = content.get("results", {})
    chosen = results.get(CHOICE_SETTING)
    if chosen is None and VAL_BEST_RATE in results:
        chosen = next((n for n, each in enumerate(grid) if each.rate == results[VAL_BEST_RATE]), None)
    chosen = settings.index(setting) if setting is not None else 0 if len(settings) == 1 else chosen
    return LoadedClassifier(model, ready(loaded, model, ""), classes, outputs, settings, chosen)


def matched_source(loaded: LoadedCheckpoint, classifier: LoadedClassifier) -> tuple[Source, str]:
    """The held-out images with the classes of the classifier, and what differs between the two.

    Raises ValueError where there are none, or an image has a class that the classifier does not know.
    """
    train, held_out = build.build_sources(loaded.cfg)
    if len(held_out) and held_out.labels is None:
        raise ValueError(f"the held-out images {no_labels(loaded)}; predict says the class of images without labels")
    check_labelled(loaded, held_out)
    names = classifier.classes or _names_by_number(loaded, classifier.outputs, train)
    matched, note = match_classes(held_out, names, f"the data that {loaded.path} was trained on")
    if note:
        LOG.warning("%s", note)
    return matched, note


def _names_by_number(loaded: LoadedCheckpoint, outputs: int, train: Source) -> tuple[str, ...]:
    """The classes of the data. Raises ValueError where they are not as many as the outputs."""
    names = class_names(train)
    if len(names) != outputs:
        raise ValueError(
            f"{loaded.path} holds no names of its {outputs:,} classes, and {train.label_origin()} have "
            f"{len(names):,}: {list_names(names)}"
        )
    return names


def _answers(
    loaded: LoadedCheckpoint, classifier: LoadedClassifier, source: Files, reader: Reader
) -> Generator[ClassPrediction, None, None]:
    """Each image in order, on every rank; a batch of each rank is in memory.

    Raises DataLost at the end where none can be read.
    """
    world, images, chosen = loaded.world, 0, classifier.chosen
    assert chosen is not None
    data = build.evaluation_data(loaded.cfg, source)
    shared = reader.batch_size * world.size  # rows of a batch of all ranks
    with closing(reader.read(data, range(len(source)), world.rank, world.size, mixed=True)) as parts:
        part = next(parts, None)
        for start in range(0, len(source), shared):
            rows, probabilities_BK = list[int](), torch.empty(0, classifier.outputs, device=world.device)
            if part is not None and part.rows[0] < start + shared:  # else this rank's batch is broken, or empty
                img_BCHW = classifier.preprocess(part.batch.images_BCHW.to(world.device))
                rows, probabilities_BK = part.rows, classifier.model(img_BCHW)[chosen].float().softmax(dim=1)
                part = next(parts, None)
            rows_B = world.gather(torch.tensor(rows, dtype=torch.long, device=world.device))
            probabilities_BK = world.gather(probabilities_BK)
            check_finite(loaded, "scores", probabilities_BK)
            of_row = dict(zip(rows_B.tolist(), probabilities_BK.cpu().numpy(), strict=True))
            images += len(of_row)
            expected = range(start, min(start + shared, len(source)))
            broken = reader.left_out(world) if len(of_row) < len(expected) else {}
            for row in expected:
                yield ClassPrediction(source.paths[row], of_row.get(row), broken.get(source.describe(row), ""))
    reader.settle(images, world)
