"""Means over held-out samples of all ranks, and the loss of predicting the mean target.

Shapes: B batch, C channels, H W pixels, R held-out samples.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.evaluation.reading import EvaluationBatch
from mim.model import MaskedImageModel
from mim.structures import PatchMask, Prediction

Read = Callable[[], Iterable[EvaluationBatch]]  # starts a reading of this rank's samples


def masks_of(masks_R: PatchMask, part: EvaluationBatch) -> PatchMask:
    """The masks of a batch, from those of all samples."""
    return PatchMask(masks_R.hidden_BHW[part.rows], masks_R.visible)


def mean_over(
    parts: Iterable[EvaluationBatch], sum_of: Callable[[EvaluationBatch], Tensor], channels: int, world: World
) -> Tensor:
    """The mean over all samples, (channels,) float64. A host sync on several ranks.

    Args:
        parts: the batches of this rank.
        sum_of: gives the sum over the samples of a batch, in float64.
        channels: the number of values of that sum.
        world: shares the samples.
    """
    total = torch.zeros(channels + 1, dtype=torch.float64, device=world.device)
    for part in parts:
        total[:-1] += sum_of(part)
        total[-1] += len(part.rows)
    total = world.sum(total)
    return total[:-1] / total[-1]


def constant_loss(
    model: MaskedImageModel, preprocess: Preprocess, masks_R: PatchMask, read: Read, world: World
) -> float:
    """The loss of predicting each channel's mean target everywhere. It reads twice. A host sync."""

    def target_of(part: EvaluationBatch) -> Tensor:
        return model.target(preprocess(part.batch.images_BCHW.to(world.device)))

    def sums_of(part: EvaluationBatch) -> Tensor:
        return target_of(part).double().mean(dim=(2, 3)).sum(dim=0)

    mean_C = mean_over(read(), sums_of, model.target.spec.channels, world)
    mean_1C11 = mean_C.float()[None, :, None, None]

    def loss_of(part: EvaluationBatch) -> Tensor:
        target_BCHW = target_of(part)
        loss = model.loss(Prediction(mean_1C11.expand_as(target_BCHW)), target_BCHW, masks_of(masks_R, part))
        return loss.double() * len(part.rows)

    return float(mean_over(read(), loss_of, 1, world))
