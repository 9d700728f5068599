"""Pictures of held-out images with labels: confusion, reliability, and masks beside their answers.

Shapes: B batch, H W pixels.
"""

import torch
from torch import Tensor

from mim.data.loading.dataset import ImageDataset
from mim.data.preprocess import Preprocess
from mim.evaluation.metrics import Result
from mim.evaluation.reading import Reader, choose_samples
from mim.pictures.confusion import draw_confusion
from mim.pictures.reliability import draw_reliability
from mim.pictures.segmentations import draw_segmentations
from mim.readouts import Predictor
from mim.structures import LabelSpec

ROWS = 8  # images on the sheet of masks


def draw_result(result: Result, spec: LabelSpec, title: str) -> dict[str, Tensor]:
    """The pictures of metrics, (H, W, 3) uint8 by name: `confusion` of classes, `reliability` of one class an image."""
    pictures = {}
    if result.confusion_KK is not None and result.samples:
        share = result.confusion_KK.trace() / max(int(result.confusion_KK.sum()), 1)
        unit = "pixels of " if spec.kind == "mask" else ""
        text = f"{title}: {share:.1%} of {unit}{result.samples:,} held-out images"
        pictures["confusion"] = draw_confusion(result.confusion_KK, spec.names, text)
    if result.calibration is not None and result.samples:
        pictures["reliability"] = draw_reliability(result.calibration, f"{title}: {result.samples:,} held-out images")
    return pictures


def draw_masks(
    model: Predictor, number: int, preprocess: Preprocess, data: ImageDataset, samples: int, title: str
) -> dict[str, Tensor]:
    """The sheet `segmentations` (H, W, 3) uint8 of the first held-out images that can be read; nothing without any.

    Args:
        number: position of the readout.
        samples: images that are evaluated at most; 0 for all.
    """
    chosen = choose_samples(len(data), samples, data.seed)[:ROWS]
    part = next(Reader(ROWS, 0).read(data, chosen), None)
    if part is None:
        return {}
    truth_BHW = part.batch.labels
    img_BCHW = preprocess(part.batch.images_BCHW.to(preprocess.mean_C11.device))
    scores = model(img_BCHW)[number]
    answers_BHW = model.criterion.answers(scores, (truth_BHW.shape[1], truth_BHW.shape[2])).argmax(dim=1)
    unit_BCHW = preprocess.undo(img_BCHW.float()).clamp(0, 1)
    names = model.criterion.spec.names
    return {"segmentations": draw_segmentations(unit_BCHW, truth_BHW, answers_BHW.to(torch.int64), names, title)}
