"""What the held-out targets are like: the loss of predicting their mean, and whether they have collapsed.

Shapes: B batch, C channels, h w entries of the target, E of them, N images of all ranks, R held-out samples.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mim.data.preprocess import Preprocess, missing_pixels
from mim.engine.distributed.world import World
from mim.evaluation.rank import effective_rank
from mim.evaluation.reading import EvaluationBatch
from mim.metric_keys import TARGET_RANK, TARGET_STD, VAL_BASELINE, at_start
from mim.model import MaskedImageModel
from mim.structures import PatchMask, Prediction

Read = Callable[[], Iterable[EvaluationBatch]]  # starts a reading of this rank's samples
ENTRIES = 4  # of the target of each image, from which the rank is estimated
LEAST_RANK = 2.0  # below it, the targets lie on a line
LEAST_SHARE = 0.1  # of the spread at the start
LEAST_RANK_SHARE = 0.4  # of the rank at the start: healthy runs on the digits keep .8, collapsed ones .37 at most


def measure_targets(
    model: MaskedImageModel, preprocess: Preprocess, masks_R: PatchMask, read: Read, world: World
) -> dict[str, float]:
    """val/baseline: the loss of predicting each channel's mean everywhere; of a moving target also val/target_rank.

    The rank is that of what differs between images: an encoder that knows positions differs between places even where
    all images are alike to it. It reads twice. A host sync.
    """
    target = model.target
    high, wide = target.image.grid(target.spec.stride, "the target's stride")
    parts = target.by_label(torch.empty(0, target.spec.channels, high, wide, device=world.device))  # of a rank without
    vectors = {label: [_some_vectors(none_0Chw)] for label, (part, none_0Chw) in parts.items() if part.moving}

    def images_of(part: EvaluationBatch) -> tuple[Tensor, PatchMask]:
        stored_BCHW = part.batch.images_BCHW.to(world.device)
        return preprocess(stored_BCHW), masks_R.samples(part.rows).with_missing(missing_pixels(stored_BCHW))

    def sums_of(part: EvaluationBatch) -> Tensor:
        img_BCHW, mask = images_of(part)
        map_BChw = target(img_BCHW)
        for label, (_, piece_BChw) in target.by_label(map_BChw).items():
            if label in vectors:
                vectors[label].append(_some_vectors(piece_BChw))
        return _mean_of_complete(map_BChw.double(), mask.complete_at(high, wide)).sum(dim=0)

    mean_C, _ = mean_over(read(), sums_of, target.spec.channels, world)
    constant_1C11 = model.loss.constant(mean_C).float()[None, :, None, None]

    def loss_of(part: EvaluationBatch) -> Tensor:
        mask, (target_BChw, *_) = model.teach(*images_of(part))
        loss = model.loss(Prediction(constant_1C11.expand_as(target_BChw)), target_BChw, mask)
        return loss.double() * len(part.rows)

    measures = {VAL_BASELINE: float(mean_over(read(), loss_of, 1, world)[0])}
    for label, rows in vectors.items():
        vectors_NEC = world.gather(torch.cat(rows))
        if len(vectors_NEC) < 2:
            continue
        differences_NC = (vectors_NEC - vectors_NEC.mean(dim=0)).flatten(0, 1)
        measures["_".join(filter(None, (TARGET_RANK, label)))] = effective_rank(differences_NC)
    return measures


def collapse(results: dict[str, Any]) -> str:
    """Says that the targets have collapsed, from the last metrics of a run; empty where they have not, or cannot."""
    facts = []
    for key, value in results.items():
        start = results.get(at_start(key), 0.0)
        if key.startswith(TARGET_RANK) and not key.endswith(at_start("")):
            if value < LEAST_RANK and not 0 < start < LEAST_RANK:  # such as that of two clusters
                facts.append(f"{key} is {value:.2f} (their vectors lie on one line)")
            elif value < LEAST_RANK_SHARE * start:
                facts.append(f"{key} is {value:.2f} ({start:.2f} at the start)")
        if key.startswith(TARGET_STD) and value < LEAST_SHARE * start:
            facts.append(f"{key} is {value:.2g} ({start:.2g} at the start)")
    if not facts:
        return ""
    return (
        f"the targets have collapsed: {' and '.join(facts)}. Features no longer tell images apart; use a TARGET.decay "
        "nearer to 1, a lower OPTIMIZER.base_lr, a longer SCHEDULE.warmup_epochs, or TARGET.layer_norm instance"
    )


def mean_over(
    parts: Iterable[EvaluationBatch], sum_of: Callable[[EvaluationBatch], Tensor], channels: int, world: World
) -> tuple[Tensor, int]:
    """The mean over the samples of all ranks, (channels,) float64, from the sum over each batch, and their number.

    A host sync.
    """
    total = torch.zeros(channels + 1, dtype=torch.float64, device=world.device)
    for part in parts:
        total[:-1] += sum_of(part)
        total[-1] += len(part.rows)
    total = world.sum(total)
    return total[:-1] / total[-1], int(total[-1])


def _mean_of_complete(map_BChw: Tensor, complete_Bhw: Tensor | None) -> Tensor:
    """The mean of a target over the entries of each image that lack no pixel, (B, C); 0 where all do."""
    if complete_Bhw is None:
        return map_BChw.mean(dim=(2, 3))
    sums_BC = (map_BChw * complete_Bhw[:, None]).sum(dim=(2, 3))
    return sums_BC / complete_Bhw.sum(dim=(1, 2)).clamp(min=1)[:, None]


def _some_vectors(map_BChw: Tensor) -> Tensor:
    """The vectors of a few entries of each target, spread evenly over the map, (B, E, C)."""
    map_BCL = map_BChw.flatten(2).float()
    count = min(ENTRIES, map_BCL.shape[2])
    entries = torch.linspace(0, map_BCL.shape[2] - 1, count + 2, device=map_BCL.device)[1:-1].round().long()
    return map_BCL[:, :, entries].transpose(1, 2)
