"""Average precision of instance masks, from scratch, for the example of detection.

Shapes: H W pixels, P pixels of a flat mask, M detections, N objects.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def average_precision(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]], label: int) -> float:
    """The area under precision over recall of the masks of one class: AP at an overlap (IoU) of 0.5.

    Each object is counted for the surest mask that overlaps it. Precision at a recall is the highest from there on.
    """
    scores, right, objects = [], [], 0
    for image_CHW, target in zip(images, targets, strict=True):
        (answer,) = detector([image_CHW])  # its boxes are in falling order of scores
        own = answer["labels"] == label
        masks_MP = (answer["masks"][own, 0] > 0.5).flatten(1).float()
        truth_NP = target["masks"][target["labels"] == label].flatten(1).float()
        both_MN = masks_MP @ truth_NP.T
        overlaps_MN = both_MN / (masks_MP.sum(1)[:, None] + truth_NP.sum(1) - both_MN)
        for overlaps_N in overlaps_MN:
            best = int(overlaps_N.argmax()) if len(overlaps_N) else 0
            right.append(bool((overlaps_N[best:] >= 0.5)[:1].any()))
            overlaps_MN[:, best : best + right[-1]] = -1  # taken
        scores += answer["scores"][own].tolist()
        objects += len(truth_NP)
    right_M = torch.tensor(right)[torch.tensor(scores).argsort(descending=True)].double()
    precision_M = right_M.cumsum(0) / torch.arange(1, len(right_M) + 1)
    return float((precision_M.flip(0).cummax(0).values.flip(0) * right_M).sum() / max(objects, 1))
