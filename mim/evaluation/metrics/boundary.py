"""The boundary F1 of masks.

Shapes: B batch, H W pixels, K classes.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.0075  # of the diagonal of the image
IGNORED = -1
OUTSIDE = -2  # the class of what is not on a boundary


def boundary_f1(truth_BHW: Tensor, answers_BHW: Tensor, classes: int) -> Tensor:
    """The boundary F1 of each image (B,) float64; NaN where neither mask has a boundary.

    A pixel is on the boundary of its class if one of its four neighbours has another class. Precision is the share of
    the boundary pixels of the answer that have one of the same class of the truth within 0.75% of the diagonal, recall
    the share the other way round; F1 is their harmonic mean. The value of an image is the mean over the classes that
    have a boundary in truth or answer. Ignored pixels (-1 in the truth) belong to no class and no boundary.

    Source: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013, section 2.2.
    """
    ignored_BHW = truth_BHW == IGNORED
    truth_BHW, answers_BHW = (
        _boundaries(each_BHW.masked_fill(ignored_BHW, IGNORED).short()) for each_BHW in (truth_BHW, answers_BHW)
    )
    near_truth_BHW, near_answer_BHW = torch.zeros_like(ignored_BHW), torch.zeros_like(ignored_BHW)
    for shift in _shifts(TOLERANCE * math.hypot(*truth_BHW.shape[1:])):
        near_truth_BHW |= answers_BHW == _shifted(truth_BHW, *shift)
        near_answer_BHW |= truth_BHW == _shifted(answers_BHW, *shift)
    precision_BK, answered_BK = _shares(answers_BHW, near_truth_BHW, classes)
    recall_BK, true_BK = _shares(truth_BHW, near_answer_BHW, classes)
    f1_BK = 2 * precision_BK * recall_BK / (precision_BK + recall_BK).clamp(min=torch.finfo(torch.float64).tiny)
    counted_BK = (answered_BK + true_BK) > 0
    return (f1_BK * counted_BK).sum(dim=1) / counted_BK.sum(dim=1)


def _boundaries(classes_BHW: Tensor) -> Tensor:
    """The class of each pixel on a boundary, OUTSIDE elsewhere."""
    on_BHW = torch.zeros_like(classes_BHW, dtype=torch.bool)
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        neighbour_BHW = _shifted(classes_BHW, *shift)
        on_BHW |= (neighbour_BHW != classes_BHW) & (neighbour_BHW >= 0)
    return classes_BHW.masked_fill(~on_BHW | (classes_BHW == IGNORED), OUTSIDE)


def _shifted(classes_BHW: Tensor, down: int, right: int) -> Tensor:
    """The map moved by some pixels; IGNORED comes in at its edges."""
    padding = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    height, width = classes_BHW.shape[1:]
    padded_BHW = F.pad(classes_BHW, padding, value=IGNORED)
    return padded_BHW[:, max(-down, 0) :, max(-right, 0) :][:, :height, :width]


def _shifts(radius: float) -> Iterator[tuple[int, int]]:
    """All moves by whole pixels in a disc."""
    reach = range(-int(radius), int(radius) + 1)
    return ((down, right) for down in reach for right in reach if math.hypot(down, right) <= radius)


def _shares(boundary_BHW: Tensor, near_BHW: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Of the boundary pixels of each class: the share that is near, 0 without any, and their number, (B, K) float64."""
    on_BHW = boundary_BHW != OUTSIDE
    index_BP = boundary_BHW.masked_fill(~on_BHW, 0).long().flatten(1)
    counts, hits = (
        torch.zeros(len(index_BP), classes, dtype=torch.float64, device=index_BP.device).scatter_add_(
            1, index_BP, each_BHW.flatten(1).double()
        )
        for each_BHW in (on_BHW, on_BHW & near_BHW)
    )
    return hits / counts.clamp(min=1), counts
