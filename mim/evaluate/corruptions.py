"""Robustness: accuracy of a classifier on held-out images under ImageNet-C's corruptions, with a curve of each.

The same images under each corruption, on one process or under torchrun. Shapes: B batch, N images, L readouts, C
columns (clean images, then each corruption and severity), R resamples.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.corruptions import (
    FAMILIES,
    PUBLISHED_SIDE,
    SEVERITIES,
    Corrupted,
    check_corruptible,
    choose_corruptions,
    compile_once,
)
from mim.data.loading.dataset import ImageDataset
from mim.data.sources.base import Source, Stored
from mim.evaluate.loading import LoadedCheckpoint, check_finite, inference_mode, load, origin, title
from mim.evaluate.predictor import LoadedPredictor, load_predictor, matched_source
from mim.evaluation.metrics.bootstrap import Measured
from mim.evaluation.reading import Reader, choose_samples, left_out_metrics
from mim.metric_keys import CORRUPTIONS_BY_NAME, CORRUPTIONS_CLEAN, CORRUPTIONS_TOP1, interval
from mim.pictures.corruptions import draw_corruption_curves
from mim.pictures.files import write_picture
from mim.structures import ImageSpec

LOG = logging.getLogger("mim")

CURVES = "corruptions.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptionSettings:
    """What is corrupted.

    Args:
        only: names and families of corruptions; none: all 15.
        images: number of held-out images, drawn by the seed; None: all.
        seed: of the choice of images.
        setting: of classify.
    """

    only: Sequence[str] = ()
    images: int | None = None
    seed: int = 0
    setting: str | None = None


def corruptions(run: Path, output: Path, overrides: Overrides, settings: CorruptionSettings) -> dict[str, Any]:
    """Top-1 of clean images, of each corruption and severity, and the mean of all, with intervals; curves in `output`.

    Images are corrupted as the evaluation transform leaves them, before they are normalised. What an image draws
    depends on SEED, the image and the corruption alone.

    Raises ValueError where the checkpoint has no classifier, its labels are not of kind class, or its images cannot be
    corrupted.
    """
    names = choose_corruptions(settings.only)
    if settings.images is not None and settings.images < 1:
        raise ValueError(f"--images is {settings.images}: at least 1 held-out image")
    with load(run, overrides) as loaded:
        _check_images(loaded)
        classifier = load_predictor(loaded, settings.setting)
        kind = classifier.spec.kind
        if kind != "class":
            raise ValueError(f"corruptions counts right answers to labels of kind class, and {loaded.path} has {kind}")
        matched, note = matched_source(loaded, classifier)
        samples = sorted(choose_samples(len(matched), settings.images or 0, settings.seed))
        answers = _Answers(loaded, classifier, matched, samples)
        kept_N, right_NC = answers.of(names)
        groups_N = np.asarray(samples if matched.groups is None else matched.groups[samples])[kept_N]
        result = loaded.world.from_main(lambda: _result(loaded, names, right_NC, groups_N))
        path = output / CURVES
        if loaded.world.main:
            write_picture(path, _curves(loaded, result, 1 / classifier.spec.outputs))
        return {
            **origin(loaded),
            **classifier.describe(answers.chosen),
            "held-out images": len(right_NC),
            **left_out_metrics(answers.broken),
            "classes": note or f"all {classifier.spec.outputs:,} of the classifier",
            **result,
            "pictures": [str(path)],
        }


def _check_images(loaded: LoadedCheckpoint) -> None:
    """Raises ValueError where images cannot be corrupted; warns where they are smaller than ImageNet-C's."""
    data = loaded.cfg.DATA
    check_corruptible(ImageSpec(data.channels, *data.image_size))
    if min(data.image_size) < PUBLISHED_SIDE:
        LOG.warning(
            "corruptions have the strengths that ImageNet-C chose for %d px: at %d px, blur by a number of pixels "
            "takes more, and zoom takes less. CIFAR-10-C has its own strengths, so do not compare with it",
            PUBLISHED_SIDE,
            min(data.image_size),
        )


class _Answers:
    """Right and wrong answers to the chosen images under each corruption."""

    def __init__(self, loaded: LoadedCheckpoint, classifier: LoadedPredictor, source: Source, samples: Sequence[int]):
        self.loaded, self.classifier, self.source, self.samples = loaded, classifier, source, samples
        self.reader = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers)
        self.chosen = 0 if classifier.chosen is None else classifier.chosen
        self.broken: dict[str, str] = {}

    def of(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the images that could be read each time, (N,), and whether each answer is right, (N, C) float64.

        The first column is of clean images, then one for each corruption and severity.
        """
        crop = build.evaluation_crop(self.loaded.cfg)
        answer_NC = np.full((len(self.samples), 1 + len(names) * len(SEVERITIES)), -1, dtype=np.int8)  # -1: none
        rows_N, right_NL = self._pass(crop)
        if self.classifier.chosen is None:  # an older probe: as classify does
            self.chosen = int(right_NL.mean(axis=0).argmax())
        answer_NC[rows_N, 0] = right_NL[:, self.chosen]
        if "glass_blur" in names and self.reader.workers:
            compile_once()
        variants = [(name, severity) for name in names for severity in SEVERITIES]
        for column, (name, severity) in enumerate(variants, start=1):
            LOG.info("%s, severity %d", name.replace("_", " "), severity)
            rows_N, right_NL = self._pass(Corrupted(crop, name, severity))
            answer_NC[rows_N, column] = right_NL[:, self.chosen]
        kept_N = np.flatnonzero((answer_NC >= 0).all(axis=1))
        return kept_N, answer_NC[kept_N].astype(np.float64)

    def _pass(self, transform: Callable[[Stored, int], Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N,) of images over all ranks, without broken and unknown ones, and whether each readout is right."""
        loaded, model, world = self.loaded, self.classifier.model, self.loaded.world
        data = ImageDataset(self.source, transform, loaded.cfg.SEED)
        rows, right = list[int](), [torch.empty(0, len(model.readouts), dtype=torch.bool, device=world.device)]
        with inference_mode(loaded):
            for part in self.reader.read(data, self.samples, world.rank, world.size):
                scores = model(self.classifier.preprocess(part.batch.images_BCHW.to(world.device)))
                labels_B = part.batch.labels.to(world.device)
                for each in scores:
                    check_finite(loaded, "scores", each)
                right_BL = torch.stack([each.argmax(dim=1) == labels_B for each in scores], dim=1)
                rows += [row for row, known in zip(part.rows, (labels_B >= 0).tolist(), strict=True) if known]
                right.append(right_BL[labels_B >= 0])
        rows_N = world.gather(torch.tensor(rows, dtype=torch.long, device=world.device))
        right_NL = world.gather(torch.cat(right))
        self.broken = self.reader.settle(len(rows_N), world)
        return rows_N.cpu().numpy(), right_NL.cpu().numpy()


def _result(
    loaded: LoadedCheckpoint, names: Sequence[str], right_NC: np.ndarray, groups_N: np.ndarray
) -> dict[str, Any]:
    """Accuracies and their intervals over images, or over groups of them."""
    by_name = {name: 1 + len(SEVERITIES) * number for number, name in enumerate(names)}
    means_NC = {
        CORRUPTIONS_CLEAN: right_NC[:, 0],
        CORRUPTIONS_TOP1: right_NC[:, 1:].mean(axis=1),
        **{name: right_NC[:, start : start + len(SEVERITIES)].mean(axis=1) for name, start in by_name.items()},
    }
    measured = Measured(
        lambda weights_NR: {key: mean_N @ weights_NR / weights_NR.sum(axis=0) for key, mean_N in means_NC.items()},
        len(right_NC) * len(means_NC),
    )
    values, cfg = measured.values(len(right_NC)), loaded.cfg
    resamples = measured.resamples(cfg.EVALUATE.resamples) if len(np.unique(groups_N)) > 1 else 0
    ends = measured.intervals(groups_N, resamples, cfg.SEED) if resamples else {}
    shares_C = right_NC.mean(axis=0).tolist()
    table = {
        name: {
            "top1": values[name],
            **({"interval": list(ends[name])} if name in ends else {}),
            "by_severity": shares_C[start : start + len(SEVERITIES)],
        }
        for name, start in by_name.items()
    }
    keys = (CORRUPTIONS_CLEAN, CORRUPTIONS_TOP1)
    return {
        **{key: values[key] for key in keys},
        **{interval(key): list(ends[key]) for key in keys if key in ends},
        CORRUPTIONS_BY_NAME: table,
    }


def _curves(loaded: LoadedCheckpoint, result: Mapping[str, Any], chance: float) -> Tensor:
    table = result[CORRUPTIONS_BY_NAME]
    families = {
        family: {name: table[name]["by_severity"] for name in names if name in table}
        for family, names in FAMILIES.items()
    }
    families = {family: curves for family, curves in families.items() if curves}
    clean, mean = result[CORRUPTIONS_CLEAN], result[CORRUPTIONS_TOP1]
    side = min(loaded.cfg.DATA.image_size)
    notes = [f"Strengths as ImageNet-C chose them for {PUBLISHED_SIDE} px; these images have {side} px."]
    text = f"{title(loaded)}: {clean:.1%} clean, {mean:.1%} over {len(table)} corruptions"
    return draw_corruption_curves(families, SEVERITIES, clean, chance, text, notes if side != PUBLISHED_SIDE else [])
