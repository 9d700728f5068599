"""Masks from patches: nearest neighbours and logistic regression on frozen features of patches.

Every image is read once for the fit and once more for each count, on one process or under torchrun.
Shapes: B images, H W pixels, h w patches high and wide, D feature width, K classes.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from mim import build
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names
from mim.evaluate.loading import LoadedCheckpoint, check_finite, inference_mode
from mim.evaluation.metrics.base import Result
from mim.evaluation.metrics.masks import MaskCollector
from mim.evaluation.patch_classifiers import (
    DISTANCES,
    NEIGHBOURS,
    PENALTIES,
    Logistic,
    LogisticPatches,
    Nearest,
    NearestPatches,
    PatchClassifier,
    best_setting,
    count_regions,
    predicted_masks,
)
from mim.evaluation.patch_features import PatchBank, PatchEncoder, PatchMaps, collect
from mim.evaluation.reading import Reader, choose_samples, left_out_metrics
from mim.metric_keys import VAL_BY_CLASS, VAL_LOSS, interval
from mim.metric_keys import dense as dense_key

MOST_PATCHES = 20_000
SHARE = 10  # of the training images a tenth chooses the settings
FIRST = Nearest(10, "cosine"), Logistic(1.0)  # where there is no image to choose with

Classifiers = dict[str, PatchClassifier]  # by name: knn, logistic


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings:
    """How patches are classified.

    Args:
        patches: of the training images, at most, the same number of each image; 0: all.
        k: neighbours, by cosine similarity; None: chosen.
        c: inverse strength of the penalty of the logistic regression; None: chosen.
        seed: of the choice of patches, and of the images that choose.
    """

    patches: int = MOST_PATCHES
    k: int | None = None
    c: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patches < 0:
            raise ValueError(f"--patches is {self.patches}: at least 1, or 0 for all")
        if self.k is not None and self.k < 1:
            raise ValueError(f"--k is {self.k}: at least 1 neighbour")
        if self.c is not None and self.c <= 0:
            raise ValueError(f"--c is {self.c:g}: it must be above 0")


@dataclass(frozen=True, slots=True)
class FittedPatches:
    """The classifiers of patches, each with one setting."""

    classifiers: Classifiers
    names: tuple[str, ...]  # of the classes
    device: torch.device


class _Patches:
    """Reads the images of a source as maps of features with masks."""

    def __init__(self, loaded: LoadedCheckpoint, encoder: PatchEncoder, source: Source):
        self.loaded, self.encoder, self.source = loaded, encoder, source
        self.data = build.evaluation_data(loaded.cfg, source, masks=True)
        self.reader = Reader(loaded.cfg.DATA.batch_size, loaded.cfg.DATA.workers)
        self.images = 0  # that this rank has read

    def of(self, samples: Sequence[int]) -> Generator[PatchMaps, None, None]:
        """The maps of this rank's share of these images."""
        world = self.loaded.world
        with closing(self.reader.read(self.data, samples, world.rank, world.size)) as parts:
            for part in parts:
                map_BDhw = self.encoder.maps(part.batch.images_BCHW)
                check_finite(self.loaded, "features", map_BDhw)
                labels_BHW = part.batch.labels.to(map_BDhw.device)
                self.images += len(part.rows)
                yield PatchMaps(
                    rearrange(map_BDhw, "b d h w -> b h w d"), labels_BHW, [samples[row] for row in part.rows]
                )

    def settle(self) -> dict[str, str]:
        """Counts the images of all ranks; see Reader.settle."""
        world = self.loaded.world
        return self.reader.settle(int(world.sum(torch.tensor(self.images, device=world.device))), world)


def classify_patches(
    loaded: LoadedCheckpoint,
    encoder: PatchEncoder,
    train: Source,
    held_out: Source,
    settings: PatchSettings,
) -> tuple[FittedPatches, dict[str, Any]]:
    """Two classifiers of patches, fitted on training images, and mIoU, pixel accuracy and boundary F1 on held-out ones.

    The class of a patch is that of most of its pixels. Features are standardised over the patches that are fitted.
    Neighbours (1, 3, 10 or 30, by cosine or L2 distance) vote, and logistic regression is fitted by L-BFGS with one of
    8 penalties; both settings are chosen by the mIoU on a tenth of the training images, and the classifiers are then
    fitted on all of them. Masks are compared pixel by pixel, where a pixel has the class of its patch.

    Source: CAPI, Darcet et al. 2025, arXiv:2502.08769, section 4; facebookresearch/capi, eval_segmentation.py.
    Differs from it: images are cropped as in all evaluations here, where CAPI squeezes them into a square; at most
    `settings.patches` patches are fitted, where CAPI takes all; each neighbour votes with the class of its patch, where
    in CAPI it votes for each pixel of the patch by the pixel at the same place; scikit-learn's L-BFGS ends at its
    own tolerance of 1e-4, where cuML's ends at 1e-12.

    Args:
        encoder: in eval mode.
        train: images with masks.
        held_out: images with masks of the same classes.
    """
    spec = train.label_spec
    assert spec is not None
    classes, world = spec.outputs, loaded.world
    with inference_mode(loaded):
        fitted, judged = _Patches(loaded, encoder, train), _Patches(loaded, encoder, held_out)
        bank = _bank(fitted, classes, settings)
        nearest, logistic = _chosen(fitted, bank, classes, settings)
        classifiers: Classifiers = {
            "knn": NearestPatches(bank, [nearest]),
            "logistic": LogisticPatches(bank, [logistic]),
        }
        collectors = {name: MaskCollector(spec, world.device) for name in classifiers}
        for part in judged.of(range(len(held_out))):
            for name, classifier in classifiers.items():
                no_losses_B = torch.zeros(len(part.rows), device=world.device)
                answers_BHW = predicted_masks(classifier, part)[0]
                collectors[name].add(answers_BHW, part.labels_BHW, part.rows, no_losses_B)
    judged_broken = judged.settle()
    metrics: dict[str, Any] = {
        "training images": len(train),
        "patches": len(bank.labels_M),
        "held-out images": len(held_out) - len(judged_broken),
        **left_out_metrics(fitted.settle() | judged_broken),
        "knn": nearest.describe(),
        "logistic": logistic.describe(),
    }
    for name, collector in collectors.items():
        metrics |= _measured(name, collector.result(world))
    return FittedPatches(classifiers, spec.names, world.device), metrics


def _measured(name: str, result: Result) -> dict[str, Any]:
    """The metrics of one classifier under its own keys, with intervals."""
    values = {dense_key(name, key): value for key, value in result.metrics.items() if key != VAL_LOSS}
    ends = {interval(dense_key(name, key)): list(pair) for key, pair in result.intervals.items() if key != VAL_LOSS}
    return {**values, **ends, dense_key(name, VAL_BY_CLASS): result.by_name[VAL_BY_CLASS]}


def _bank(fitted: _Patches, classes: int, settings: PatchSettings) -> PatchBank:
    """The patches of all ranks, in the order of images. Raises ValueError where they have fewer than two classes."""
    source, world, width = fitted.source, fitted.loaded.world, fitted.encoder.width
    quota = max(1, settings.patches // len(source)) if settings.patches else 0
    own = collect(fitted.of(range(len(source))), classes, quota, settings.seed, width, world.device)
    fitted.settle()
    rows_M = world.gather(own.rows_M)
    order_M = rows_M.argsort(stable=True)
    bank = PatchBank(world.gather(own.features_MD)[order_M], world.gather(own.labels_M)[order_M], rows_M[order_M])
    present = bank.labels_M.unique().tolist()
    if len(present) < 2:
        what = f"all of class {class_names(source)[present[0]]}" if present else "without a class"
        raise ValueError(
            f"the patches of the training images are {what}: dense needs masks of two classes at least, on patches "
            "that are not larger than their regions; --stride names a finer map"
        )
    return bank


def _chosen(fitted: _Patches, bank: PatchBank, classes: int, settings: PatchSettings) -> tuple[Nearest, Logistic]:
    """The setting of each classifier that was asked for, or the best by the mIoU on some of the training images."""
    asked_k, asked_c = settings.k, settings.c
    nearest = (
        [Nearest(k, each) for k in NEIGHBOURS for each in DISTANCES]
        if asked_k is None
        else [Nearest(asked_k, "cosine")]
    )
    logistic = [Logistic(c) for c in PENALTIES] if asked_c is None else [Logistic(asked_c)]
    if len(nearest) + len(logistic) == 2:
        return nearest[0], logistic[0]
    count = len(fitted.source)
    choosers = choose_samples(count, max(1, count // SHARE), settings.seed)
    rest = bank.of_images(choosers, inside=False)
    if len(rest.labels_M.unique()) < 2:  # too few images to part them
        return (FIRST[0] if asked_k is None else nearest[0]), (FIRST[1] if asked_c is None else logistic[0])
    classifiers = (NearestPatches(rest, nearest), LogisticPatches(rest, logistic))
    world = fitted.loaded.world
    counts = count_regions(classifiers, fitted.of(choosers), classes, world.device)
    best = [best_setting(world.sum(each_SK3)) for each_SK3 in counts]
    return nearest[best[0]], logistic[best[1]]
