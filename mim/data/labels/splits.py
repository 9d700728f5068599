"""Splits: which images are held out: k-fold, by groups, stratified by class.

Everything is a function of the names of the images, their classes and groups, and a seed, whatever versions are
installed, because a resumed run must hold out the same images. Shapes: N images, G groups, S strata.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from mim.data.sources.base import Source
from mim.data.sources.classes import class_labels
from mim.data.sources.held_out import by_share
from mim.ops.seeding import generator_for


def fold_of(
    names: Sequence[str], class_N: np.ndarray | None, group_N: np.ndarray | None, folds: int, seed: int
) -> np.ndarray:
    """The fold of each image, (N,) int64 from 0 to folds - 1. Folds are equally large, and have equal classes.

    Args:
        names: of the images; their order alone counts, so a data set may move to another folder.
        class_N: the class of each image; None for no strata.
        group_N: images of a group are in one fold; None for none.
        folds: their number.
        seed: of the draw.

    Raises ValueError where there are fewer images, or groups, than folds.
    """
    count = len(names) if group_N is None else len(np.unique(group_N))
    if count < folds:
        what = "images" if group_N is None else "groups"
        raise ValueError(f"LABELS.folds is {folds}, and there are {count} {what}: use at most as many folds")
    order_N = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    order_N = order_N[_permutation(len(names), seed, "folds")]
    stratum_N = np.zeros(len(names), np.int64) if class_N is None else class_N
    if group_N is not None:
        return _dealt(order_N, stratum_N, group_N, np.full(folds, 1 / folds))
    fold_N = np.empty(len(names), np.int64)
    by_class_N = order_N[np.argsort(stratum_N[order_N], kind="stable")]
    fold_N[by_class_N] = np.arange(len(names)) % folds
    return fold_N


def split_rows(source: Source, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of a source, each with at least one image: the rows that are left, and `share` of the rows; sorted.

    Of classes, each part has the same shares, as far as whole images allow. Images of a group stay together.

    Raises ValueError where there are fewer than two images or groups, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of a split is {share}: it must be above 0 and below 1")
    count = len(source) if source.groups is None else len(np.unique(source.groups))
    if count < 2:
        what = "images" if source.groups is None else "groups"
        raise ValueError(f"{count} {what} cannot be split in two: give at least 2")
    class_N = class_labels(source)
    stratum_N = np.zeros(len(source), np.int64) if class_N is None else class_N
    order_N = _permutation(len(source), seed, "split")
    if source.groups is not None:
        is_second_N = _dealt(order_N, stratum_N, source.groups, np.array([1 - share, share])) == 1
    else:
        by_class_N = order_N[np.argsort(stratum_N[order_N], kind="stable")]
        is_second_N = np.zeros(len(source), bool)
        is_second_N[by_class_N] = np.diff(np.floor(np.arange(len(source) + 1) * share + 0.5)) > 0
    if is_second_N.all() or not is_second_N.any():
        one = order_N[0] if source.groups is None else source.groups == source.groups[order_N[0]]
        is_second_N[one] = ~is_second_N[one]
    return np.flatnonzero(~is_second_N), np.flatnonzero(is_second_N)


def held_out_groups(group_names: Sequence[str], share: float) -> np.ndarray:
    """The images that are held out, by a hash of the name of their group: bool (N,)."""
    hash_N = np.array([zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in group_names], np.uint32)
    is_held_out_N = np.zeros(len(group_names), bool)
    is_held_out_N[by_share(hash_N, share, "val")] = True
    return is_held_out_N


def _permutation(count: int, seed: int, purpose: str) -> np.ndarray:
    return torch.randperm(count, generator=generator_for(torch.device("cpu"), seed, purpose)).numpy()


def _dealt(order_N: np.ndarray, stratum_N: np.ndarray, group_N: np.ndarray, share_P: np.ndarray) -> np.ndarray:
    """The part of each image: groups are dealt to parts of these shares, the largest first, each where it fits best.

    It keeps the sum of the squared counts of each stratum in each part small, relative to what the part should have.
    """
    _, stratum_N = np.unique(stratum_N, return_inverse=True)
    groups, position_N = np.unique(group_N, return_inverse=True)
    count_GS = np.zeros((len(groups), stratum_N.max() + 1))
    np.add.at(count_GS, (position_N, stratum_N), 1)
    first_G = np.full(len(groups), len(order_N))  # in the drawn order
    np.minimum.at(first_G, position_N[order_N], np.arange(len(order_N)))
    scale_PS = 1 / (share_P[:, None] * count_GS.sum(0) ** 2)
    filled_PS = np.zeros((len(share_P), count_GS.shape[1]))
    part_G = np.empty(len(groups), np.int64)
    for group in np.lexsort((first_G, -count_GS.sum(1))).tolist():
        added_PS = (2 * filled_PS + count_GS[group]) * count_GS[group] * scale_PS
        part_G[group] = added_PS.sum(1).round(12).argmin()
        filled_PS[part_G[group]] += count_GS[group]
    return part_G[position_N]
