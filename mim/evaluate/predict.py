"""Predictions for images without labels: classes, numbers or masks, with the values that speak for them.

Every image is read once, on one process or under torchrun. Shapes: B batch, C channels, H W pixels, K outputs, h w
pixels of the evaluation crop.
"""

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.sources.files import Files
from mim.evaluate.loading import LoadedCheckpoint, check_finite, inference_mode, load, origin
from mim.evaluate.predictor import LoadedPredictor, load_predictor
from mim.evaluation.predicted_masks import at_stored_size, check_folder, write_masks
from mim.evaluation.predictions import WRITERS, ImagePrediction, PredictionTable
from mim.evaluation.reading import Reader, left_out_metrics


def predict(
    run: Path, images: Sequence[Path], output: Path, overrides: Overrides = (), setting: str | None = None
) -> dict[str, Any]:
    """Writes what a readout says of each image, and returns what was counted.

    Args:
        run: a run folder or checkpoint of fine-tuning or a probe.
        images: files, folders and lists, see Files. They need no labels.
        output: the file to write, with an ending of WRITERS; of masks the folder, see write_masks.
        overrides: config keys.
        setting: the title of one setting of a probe, such as `rate 3`, see LoadedPredictor.

    Raises ValueError where the checkpoint has no readout, `images` names none, or the output is not of its kind, and
    DataLost where none can be read.
    """
    with load(run, overrides) as loaded:
        predictor = load_predictor(loaded, setting)
        chosen = predictor.require_chosen(loaded.path)
        is_mask = predictor.spec.kind == "mask"
        _check_output(output, is_mask)
        source = Files(images, loaded.cfg.DATA.shared)
        if is_mask:
            check_folder(output, source.paths)
        reader, table = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers), PredictionTable.of(predictor.spec)
        with inference_mode(loaded), closing(_answers(loaded, predictor, source, reader)) as answers:
            if not loaded.world.main:
                deque(answers, maxlen=0)
            elif is_mask:
                placed = at_stored_size(answers, source, build.evaluation_crop(loaded.cfg))
                write_masks(table.counted(placed), table, output)
            else:
                output.parent.mkdir(parents=True, exist_ok=True)
                WRITERS[output.suffix.lower()](table.counted(answers), table, output)
        return {
            **origin(loaded),
            **predictor.describe(chosen),
            "images": table.images,
            **left_out_metrics(reader.left_out(loaded.world)),
            "file": str(output),
            "predicted": table.summary(),
        }


def _check_output(output: Path, is_mask: bool) -> None:
    """Raises ValueError where the output has another form than the predictions."""
    if is_mask and (output.suffix or output.is_file()):
        raise ValueError(
            f"--output is {output}: the labels are masks, a picture for each image, so name a folder, such as masks"
        )
    if not is_mask and output.suffix.lower() not in WRITERS:
        raise ValueError(
            f"--output is {output}: predict writes a file: name it with --output FILE{' or FILE'.join(WRITERS)}"
        )


def _answers(
    loaded: LoadedCheckpoint, predictor: LoadedPredictor, source: Files, reader: Reader
) -> Generator[ImagePrediction, None, None]:
    """Each image in order, on every rank; a batch of each rank is in memory. Masks are classes of the evaluation crop.

    Raises DataLost at the end where none can be read.
    """
    world, images = loaded.world, 0
    data = build.evaluation_data(loaded.cfg, source, masks=False)
    empty, empty_scores = _no_answers(loaded, predictor)
    shared = reader.batch_size * world.size  # rows of a batch of all ranks
    with closing(reader.read(data, range(len(source)), world.rank, world.size, mixed=True)) as parts:
        part = next(parts, None)
        for start in range(0, len(source), shared):
            rows, answers, sums_B = list[int](), empty, empty_scores
            if part is not None and part.rows[0] < start + shared:  # else this rank's batch is broken, or empty
                rows, (answers, sums_B) = part.rows, _answer(loaded, predictor, part.batch.images_BCHW)
                part = next(parts, None)
            rows_B = world.gather(torch.tensor(rows, dtype=torch.long, device=world.device))
            answers = world.gather(answers)
            check_finite(loaded, "scores", world.gather(sums_B))
            of_row = dict(zip(rows_B.tolist(), answers.cpu().numpy(), strict=True))
            images += len(of_row)
            expected = range(start, min(start + shared, len(source)))
            broken = reader.left_out(world) if len(of_row) < len(expected) else {}
            for row in expected:
                yield ImagePrediction(source.paths[row], of_row.get(row), broken.get(source.describe(row), ""))
    reader.settle(images, world)


def _answer(loaded: LoadedCheckpoint, predictor: LoadedPredictor, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """What the chosen readout says of images, (B, K) or of masks classes (B, h, w); and sums of its scores (B,)."""
    assert predictor.chosen is not None
    scores = predictor.model(predictor.preprocess(images_BCHW.to(loaded.world.device)))[predictor.chosen]
    is_mask = predictor.spec.kind == "mask"
    size = (images_BCHW.shape[2], images_BCHW.shape[3]) if is_mask else None
    answers = predictor.model.criterion.answers(scores, size)
    if is_mask:
        answers = answers.argmax(dim=1).int()
    return answers, scores.double().flatten(1).sum(dim=1)


def _no_answers(loaded: LoadedCheckpoint, predictor: LoadedPredictor) -> tuple[Tensor, Tensor]:
    """Those of a batch of 0."""
    device, (height, width) = loaded.world.device, loaded.cfg.DATA.image_size
    if predictor.spec.kind == "mask":
        answers = torch.empty(0, height, width, dtype=torch.int32, device=device)
    else:
        answers = torch.empty(0, predictor.spec.outputs, dtype=torch.float64, device=device)
    return answers, torch.empty(0, dtype=torch.float64, device=device)
