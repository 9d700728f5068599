"""Metrics of a fine-tuned or probed checkpoint on held-out images with labels of any kind.

Every sample is counted once, on one process or under torchrun.
"""

import math
from pathlib import Path
from typing import Any

import torch

from mim import build
from mim.config import Overrides
from mim.evaluate.loading import check_finite, inference_mode, load, origin
from mim.evaluate.predictor import load_predictor, matched_source
from mim.evaluation.metrics import CHOSEN_BY
from mim.evaluation.reading import Reader, left_out_metrics
from mim.metric_keys import VAL_LOSS
from mim.tasks.supervised import Answers, collect


def classify(run: Path, overrides: Overrides, setting: str | None = None) -> dict[str, Any]:
    """The metrics of the kind of labels, with intervals, of a fine-tuned or probed checkpoint on all held-out images.

    Classes, and columns of numbers, are compared by their names.

    setting: the title of one setting of a probe, such as `rate 3`, see LoadedPredictor.

    Raises ValueError where the checkpoint has no readout, or the labels of the images are others than it answers.
    """
    with load(run, overrides) as loaded:
        cfg, world = loaded.cfg, loaded.world
        predictor = load_predictor(loaded, setting)
        matched, note = matched_source(loaded, predictor)
        data, reader = build.evaluation_data(cfg, matched), Reader(cfg.DATA.batch_size, cfg.DATA.workers)
        with inference_mode(loaded):
            parts = reader.read(data, range(len(data)), world.rank, world.size)
            collectors, images = collect(predictor.model, predictor.preprocess, parts, world)
        answers = Answers(collectors, world, matched.groups, reader.settle(images, world))
        chosen = predictor.chosen
        if chosen is None:
            scores = answers.scores(CHOSEN_BY[predictor.spec.kind])
            chosen = scores.index(max(scores))
        result = answers.result(chosen, cfg.EVALUATE.resamples, cfg.SEED)
        if not result.samples:
            raise ValueError(f"no held-out image has a label: {matched.label_origin()} are all unknown")
        check_finite(loaded, "scores", torch.tensor(result.metrics.get(VAL_LOSS, math.nan)))
        what, of = ("columns", "readout") if predictor.spec.kind == "number" else ("classes", "classifier")
        return {
            **origin(loaded),
            **predictor.describe(chosen),
            "held-out images": result.samples,
            **left_out_metrics(answers.broken),
            what: note or f"all {predictor.spec.outputs:,} of the {of}",
            **result.metrics,
            **result.details(),
        }
